"""Command-line options for models, which several commands share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from tsi.errors import ConfigurationError

if TYPE_CHECKING:
    from tsi.experiments.tasks.task import Split, Task
    from tsi.experiments.worlds.language_policy import Encoder
    from tsi.experiments.worlds.world import World
    from tsi.problem import Problem


RewardName = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="KIND[:ARGUMENT]",
        help=(
            "reward for solutions; by default the task's own reward model, or judge "
            "if the policy has other tokens. One of: MODEL: a reward model that reads "
            "the policy's tokens, or the name of a published reward model; "
            "qwen:MODEL, and likewise math-shepherd, rlhflow, skywork, outcome: a "
            "reward model in that format; likelihood:MODEL: likelihood ratio of a "
            "larger model to the policy; value:FILE: a value head on the policy's "
            "hidden states; judge: the policy judges its own text; mean-log-prob, "
            "self-certainty, tail-entropy, token-confidence: the policy's confidence "
            "in its own tokens, with options such as self-certainty:last=64, "
            "worst=W, scale=raw, slope=A, offset=B; verifier: the "
            "task's exact check of each prefix; outcome-verifier: the exact check of "
            "the answer only; none."
        ),
    ),
]
"""What scores solutions; :mod:`tsi.loading.named_reward` parses it."""

TemplateSwitch = tyro.conf.UseAppendAction[
    Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="NAME=JSON",
            help=(
                "set a variable of the policy's chat template, for example "
                "enable_thinking=false; can be repeated."
            ),
        ),
    ]
]
"""See :func:`tsi.experiments.worlds.language_policy.parse_switches`."""


class ModelOptions(NamedTuple):
    """Model and sampling options.

    Attributes:
        temperature: temperature of the policy; 1 by default.
        top_k: restrict the policy to this many most likely tokens.
        top_p: restrict the policy to the smallest set of tokens with this probability.
        min_p: exclude tokens below this fraction of the largest probability.
        repetition_penalty: penalty on the logits of tokens that have already occurred.
        model_sampling: use the policy's generation_config.json for those of the five
            options above that you do not set.
        delimiter: strings that end a step, in place of the task's own delimiter.
        stop_string: strings that end the solution.
        min_step_tokens: a step has at least this many tokens; delimiters before that
            are ignored.
        forced_end: force a solution that reaches a limit to end there, and correct its
            weight; without this option its weight is zero.
        forced_end_string: the same, with a string such as "The answer is" before the
            answer.
        forced_end_tokens: tokens reserved for the answer after that string.
        policy: policy model: a name, a hub id (organisation/name), a folder or a GGUF
            file; served:URL for a policy behind a server. By default the task's own.
        reward: what scores solutions; see :data:`RewardName`.
        aggregation: how step scores are aggregated; model: the reward model reads all
            steps as one step.
        dtype: number type of the models' weights and computations.
        weights: keep the models' matrices in 8 or 4 bits, and compute in dtype.
        cache_dtype: number type of keys and values; by default that of the weights.
        max_rows: rows that write tokens together on a device; by default planned from
            the free memory.
        model_parallel: number of devices that each model is divided over; the problems
            are divided over the groups of devices. With --distributed it may exceed
            the number of a process's devices.
        offload_weights: keep the policy and the reward model in the host's memory, and
            copy to the device only the one that is in use; for two models that do not
            fit there together. The reward model must read rendered text, such as
            qwen:MODEL or rlhflow:MODEL.
        attention: kernel: draw tokens with a GPU kernel that reads only the filled part
            of caches; it has been tested in an interpreter, and on no GPU yet.
        islands: divide the particles of each problem among this many islands, which
            resample separately and may run on different devices; for more particles
            than one device holds.
        template_switch: see :data:`TemplateSwitch`.
        served_tokenizer: tokenizer of a policy served:URL: a name, folder or hub id; by
            default the server's endpoints.
        served_together: send all rows of a step in one request; the server then chooses
            the random numbers, and the run cannot be repeated.
        served_price: price of a million generated tokens, for the forecast.
        served_read_price: price of a million tokens that the server reads, prompts and
            a judge's texts among them; by default that of generated tokens.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    model_sampling: bool = False
    delimiter: tuple[str, ...] = ()
    stop_string: tuple[str, ...] = ()
    min_step_tokens: int = 1
    forced_end: bool = False
    forced_end_string: str | None = None
    forced_end_tokens: int | None = None
    policy: str | None = None
    reward: RewardName = None
    aggregation: Literal["last", "min", "product", "mean", "model"] = "last"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    weights: Literal["int8", "int4"] | None = None
    cache_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_rows: int | None = None
    model_parallel: int = 1
    offload_weights: bool = False
    attention: Literal["plain", "kernel"] = "plain"
    islands: int = 1
    template_switch: TemplateSwitch = ()
    served_tokenizer: str | None = None
    served_together: bool = False
    served_price: float | None = None
    served_read_price: float | None = None

    def world(
        self,
        task: "Task",
        problems: "int | Sequence[Problem] | None",
        *,
        shapes_only: bool = False,
        split: "Split" = "test",
        encoder: "Encoder | None" = None,
    ) -> "World":
        """Load the models and return the world of the task.

        Args:
            task: from :func:`tsi.experiments.worlds.chosen_task.choose_task`.
            problems: number of test problems, the problems themselves, or None for all.
            shapes_only: do not load the weights.
            split: of the problems.
            encoder: how prompts become token ids; by default
                :func:`tsi.experiments.worlds.language_policy.prompt_encoder`.

        Raises:
            TsiError: see :func:`tsi.experiments.worlds.embedded_world.embedded_world`.
        """
        check_positive(
            max_rows=1 if self.max_rows is None else self.max_rows, islands=self.islands
        )
        from tsi.decoding.truncation import Truncation
        from tsi.experiments.worlds.embedded_world import embedded_world
        from tsi.experiments.worlds.language_policy import (
            parse_switches,
            prompt_encoder,
        )
        from tsi.experiments.worlds.step_ends import step_ends

        switches = parse_switches(self.template_switch)
        if (self.policy or "").startswith("served:"):
            return self._served_world(
                task, problems, split, encoder or prompt_encoder, switches
            ).with_islands(self.islands)
        for name in (name for name in self._fields if name.startswith("served_")):
            if getattr(self, name) != ModelOptions._field_defaults[name]:
                option = name.replace("_", "-")
                raise ConfigurationError(
                    f"--{option} needs a policy behind a server, --policy served:URL; "
                    "leave it out."
                )
        return embedded_world(
            task,
            problems,
            policy=self.policy,
            reward=self.reward,
            aggregation=self.aggregation,
            temperature=self.temperature,
            truncation=Truncation(self.top_k, self.top_p, self.min_p),
            repetition_penalty=self.repetition_penalty,
            model_sampling=self.model_sampling,
            ends=step_ends(
                self.delimiter,
                self.stop_string,
                self.min_step_tokens,
                forced_end=self.forced_end,
                forced_end_string=self.forced_end_string,
                forced_end_tokens=self.forced_end_tokens,
            ),
            max_rows=self.max_rows,
            dtype=self.dtype,
            weights=self.weights,
            cache_dtype=self.cache_dtype,
            model_parallel=self.model_parallel,
            offload_weights=self.offload_weights,
            attention=self.attention,
            template_switches=switches,
            shapes_only=shapes_only,
            split=split,
            encoder=encoder or prompt_encoder,
        ).with_islands(self.islands)

    def _served_world(
        self,
        task: "Task",
        problems: "int | Sequence[Problem] | None",
        split: "Split",
        encoder: "Encoder",
        switches: Mapping[str, Any],
    ) -> "World":
        """The world of a policy behind a server.

        Raises:
            TsiError: see :func:`tsi.experiments.worlds.served_world.served_world`.
        """
        from tsi.decoding.truncation import Truncation
        from tsi.experiments.worlds.served_world import Served, served_world
        from tsi.experiments.worlds.step_ends import step_ends

        for name in (
            "cache_dtype",
            "model_parallel",
            "offload_weights",
            "attention",
            "model_sampling",
        ):
            if getattr(self, name) != ModelOptions._field_defaults[name]:
                option = name.replace("_", "-")
                raise ConfigurationError(
                    f"--{option} is for models in this process, and the policy is "
                    "behind a server; leave it out."
                )
        price, read_price = self.served_price, self.served_read_price
        for value in (price, read_price):
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigurationError(
                    f"The price must be a number of at least 0, not {value}."
                )
        if price is None and read_price is not None:
            raise ConfigurationError(
                "--served-read-price needs the price of generated tokens too; add "
                "--served-price, which may be 0."
            )
        served = Served(
            (self.policy or "").removeprefix("served:"),
            self.served_tokenizer,
            self.served_together,
            self.max_rows,
            price,
            read_price,
            switches,
        )
        return served_world(
            task,
            problems,
            served,
            reward=self.reward,
            aggregation=self.aggregation,
            dtype=self.dtype,
            weights=self.weights,
            temperature=self.temperature,
            truncation=Truncation(self.top_k, self.top_p, self.min_p),
            repetition_penalty=self.repetition_penalty,
            ends=step_ends(
                self.delimiter,
                self.stop_string,
                self.min_step_tokens,
                forced_end=self.forced_end,
                forced_end_string=self.forced_end_string,
                forced_end_tokens=self.forced_end_tokens,
            ),
            split=split,
            encoder=encoder,
        )


Models = Annotated[ModelOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="model")]
"""The type of an argument whose fields are options of the command itself."""


class DryRun(NamedTuple):
    """Whether a command only prints what it would do.

    Attributes:
        dry_run: print what would be run, what fits into memory and what it would cost,
            and run nothing.
        flops_per_second: speed of all devices, for the estimated time; by default it is
            measured with matrix products of the policy's shape.
        pilot: number of problems that are solved before, twice each, to measure how
            long solutions are. By default a dry run has no pilot and loads no weights;
            a run has one of 8 problems if no worked solutions say how long solutions
            are, the pilot is at most 2 % of the run, and the policy is not served.
    """

    dry_run: bool = False
    flops_per_second: float | None = None
    pilot: int | None = None

    @property
    def needs_weights(self) -> bool:
        """Whether models are run, so that their weights must be loaded."""
        return not self.dry_run or bool(self.pilot)

    def check(self, *, prints_forecast: bool = False) -> None:
        """Refuse numbers that are out of range or have no effect.

        Args:
            prints_forecast: whether the command says what a run will cost before it
                starts.

        Raises:
            ConfigurationError: a speed or a pilot is out of range; a speed is given for
                a run; or a pilot for one that prints no forecast.
        """
        speed, pilot = self.flops_per_second, self.pilot
        if speed is not None and not self.dry_run:
            raise ConfigurationError("--flops-per-second needs --dry-run; add it.")
        if speed is not None and not 0 < speed < float("inf"):
            raise ConfigurationError(
                f"flops_per_second must be a positive number, not {speed}."
            )
        if pilot is not None and not (self.dry_run or prints_forecast):
            raise ConfigurationError("--pilot needs --dry-run here; add it.")
        if pilot is not None and pilot < 0:
            raise ConfigurationError(
                f"pilot must be a number of problems, 0 or more, not {pilot}."
            )


Dry = Annotated[DryRun, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="cost")]
"""See `Models`."""


ContinueAnyway = Annotated[
    bool,
    tyro.conf.arg(
        help="continue rows that were made with other versions of JAX or tsi, or on "
        "another kind of device or server; every row records its own."
    ),
]
"""The option of commands that continue a file of rows."""


def check_positive(**numbers: int) -> None:
    """Refuse numbers below 1, by name.

    Raises:
        ConfigurationError: see above.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ConfigurationError(f"{name} must be at least 1, not {value}.")
