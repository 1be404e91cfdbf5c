"""The command line's options of models, which several commands share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from tsi.errors import ConfigurationError

if TYPE_CHECKING:
    from tsi.experiments.worlds.world import World
    from tsi.problem import Problem


RewardName = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="KIND[:MODEL]",
        help=(
            "what scores solutions; by default the task's own model, or judge for "
            "a policy of other tokens. One of: MODEL: a token head, on the "
            "policy's own tokens, or the name of a published reward model; "
            "qwen:MODEL, and math-shepherd, rlhflow, skywork, outcome: a reward "
            "model in its format; likelihood:MODEL: a larger model against the "
            "policy; value:FILE: a value head on the policy's states; judge: the "
            "policy's own judgement; verifier: the task's exact check of each "
            "prefix; outcome-verifier: the same of answers alone; none."
        ),
    ),
]
"""What scores solutions, as :mod:`tsi.loading.named_reward` reads it."""

TemplateSwitch = tyro.conf.UseAppendAction[
    Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="NAME=JSON",
            help=(
                "a variable of the policy's chat template, as in "
                "enable_thinking=false; may be given several times."
            ),
        ),
    ]
]
"""See :func:`tsi.experiments.worlds.language_policy.parse_switches`."""


class ModelOptions(NamedTuple):
    """A task, the models that work on it, and how they are used.

    Attributes:
        task: chain or countdown; models ship for both.
        temperature: of the policy, 1 by default.
        top_k: the policy writes its so many most likely tokens alone.
        top_p: the policy writes the fewest most likely tokens of this mass alone.
        min_p: the policy writes no token below this share of the likeliest.
        repetition_penalty: divides the logits of tokens that were read before.
        model_sampling: let the policy's generation_config.json say what of these five
            is not given.
        delimiter: strings each of which ends a step, in place of the task's own.
        stop_string: strings each of which ends the solution.
        min_step_tokens: a delimiter that comes sooner does not end the step.
        forced_end: a solution that reaches a limit must end there, and its weight pays
            for it; without this it has no weight.
        forced_end_string: the same, with a string such as "The answer is" before the
            answer.
        forced_end_tokens: tokens kept for the answer behind that string.
        policy: another policy: a name, a hub id (organisation/name), a folder or a
            GGUF file.
        reward: what scores solutions; see :data:`RewardName`.
        aggregation: from the scores of steps to one; model shows a
            format all steps as one.
        dtype: of the models' weights.
        weights: keep the models' matrices in so few bits, and compute in dtype.
        cache_dtype: of their keys and values; that of the weights by default.
        max_rows: rows that write tokens together on a device; by default what suits
            the device.
        model_parallel: over how many devices each model is divided; rows are
            spread over what that leaves of all devices.
        template_switch: see :data:`TemplateSwitch`.
    """

    task: str = "chain"
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
    template_switch: TemplateSwitch = ()

    def world(
        self, problems: "int | Sequence[Problem]", *, shapes_only: bool = False
    ) -> "World":
        """The task with these models.

        Args:
            problems: how many held-out problems, or the problems themselves.
            shapes_only: leave the weights on disk.

        Raises:
            TsiError: as :func:`tsi.experiments.worlds.embedded_world.embedded_world`
                does.
        """
        check_positive(max_rows=1 if self.max_rows is None else self.max_rows)
        from tsi.decoding.truncation import Truncation
        from tsi.experiments.worlds.embedded_world import embedded_world
        from tsi.experiments.worlds.language_policy import parse_switches
        from tsi.experiments.worlds.step_ends import step_ends

        return embedded_world(
            self.task,
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
            template_switches=parse_switches(self.template_switch),
            shapes_only=shapes_only,
        )


Models = Annotated[ModelOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="model")]
"""The type of an argument whose fields are options of the command itself."""


class DryRun(NamedTuple):
    """Whether a command only says what it would do.

    Attributes:
        dry_run: say what would be run, what of it fits and what it would cost, and run
            nothing.
        flops_per_second: of all devices, for the time that is expected; by default it
            is measured in products of the policy's shape.
    """

    dry_run: bool = False
    flops_per_second: float | None = None

    def check(self) -> None:
        """Refuse a speed that is none, or that nothing asks for.

        Raises:
            ConfigurationError: see above.
        """
        speed = self.flops_per_second
        if speed is not None and not self.dry_run:
            raise ConfigurationError(
                "--flops-per-second is a part of --dry-run; give that too."
            )
        if speed is not None and not 0 < speed < float("inf"):
            raise ConfigurationError(
                f"flops_per_second must be a positive number, not {speed}."
            )


Dry = Annotated[DryRun, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="cost")]
"""As `Models`."""


def check_positive(**numbers: int) -> None:
    """Refuse numbers below 1, by name.

    Raises:
        ConfigurationError: see above.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ConfigurationError(f"{name} must be at least 1, not {value}.")
