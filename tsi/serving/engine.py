"""The engine over a served policy, with the interface of
:class:`tsi.engine.engine.Engine`.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tsi.decoding.token_draws import check_temperatures
from tsi.decoding.truncation import Truncation
from tsi.decoding.vocabularies import check_names_no_control
from tsi.engine.base import BaseEngine
from tsi.engine.engine_run import EngineRun
from tsi.engine.meters.report import Progress
from tsi.engine.methods import method_of, plan_of
from tsi.engine.outcomes import Outcomes
from tsi.engine.run_checks import check_method, check_num_particles
from tsi.engine.sizing.sizes import Sizes, problems_in_work
from tsi.errors import CapabilityError, ConfigurationError, PromptTooLongError
from tsi.explore import check_needs
from tsi.explorer import Explorer
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem
from tsi.problem_ids import check_ids, id_words
from tsi.reasoning.limits import SolutionLimits
from tsi.results.ledger import SlotCosts
from tsi.results.result import Result
from tsi.sampler import Sampler
from tsi.serving.confidence_scorer import check_known
from tsi.serving.dialect import Drawing
from tsi.serving.lane import ServedLane
from tsi.serving.policy import ServedPolicy
from tsi.serving.prices import Prices
from tsi.serving.scorer import Scorer, ServedScorer, check_scorer
from tsi.serving.served_rows import Spending
from tsi.serving.step import Controls
from tsi.step_keys import AnyKey, single_key

MAX_ROWS = 64
"""Rows for which a server draws at once if it does not report its number of slots."""
ROWS_PER_DRAW = 2
"""Rows in progress per row for which the server draws, if its slots are not known."""
MAX_STORED = 2**20
"""Prefixes that explorers store at once; they are references to tuples of ids."""


class ServedEngine(BaseEngine):
    """Runs samplers on problems of a policy behind a server.

    Attributes:
        report: of the last run; None before the first.

    Args:
        policy: the policy.
        scorer: the reward.
        limits: of a solution, in tokens as the server counts them.
        delimiters: strings that end a step.
        stop_strings: strings that end a solution.
        controls: how tokens are drawn. The policy with these controls is the p of the
            target and of all weights.
        encode: function from a problem's prompt to ids or code points; by default one
            turn of a chat.
        max_rows: rows for which the server draws at once; by default the server's
            number of slots, or 64 if it is not known. If the server has slots, problems
            enter while their rows fit into these, since the prefix of a row without a
            slot is read again at each step. Otherwise problems enter while at most
            twice `max_rows` rows are in progress. One problem can always enter.
        log_truncation: added to the log potential of a truncated solution; the target
            is p conditioned on finishing by default.
        prices: of the server's tokens, for forecasts; None if they are not known.

    Raises:
        ConfigurationError: a limit is below 1, there is no delimiter, a string that
            ends a step is empty or names a control token of the policy's tokenizer, a
            control is out of range, or `scorer` is not a scorer.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        scorer: Scorer | ServedScorer,
        limits: SolutionLimits,
        *,
        delimiters: Sequence[str] = ("\n\n",),
        stop_strings: Sequence[str] = (),
        controls: Controls = Controls(),  # noqa: B008
        encode: Callable[[str], list[int]] | None = None,
        max_rows: int | None = None,
        log_truncation: float = -math.inf,
        prices: Prices | None = None,
    ) -> None:
        rows = policy.abilities.slots or MAX_ROWS if max_rows is None else max_rows
        for name, limit in {**limits._asdict(), "max_rows": rows}.items():
            if limit < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {limit}.")
        strings = (*delimiters, *stop_strings)
        if not delimiters or not all(strings):
            raise ConfigurationError(
                "A served policy needs at least one delimiter, and none of the strings "
                f"that end steps may be empty; they are {list(strings)}."
            )
        tokenizer = getattr(policy.spelling, "tokenizer", policy.spelling)
        if isinstance(tokenizer, Tokenizer):
            for string in strings:
                check_names_no_control(string, tokenizer)
        check_scorer(scorer)
        controls.check()
        self.policy, self.scorer, self.limits = policy, scorer, limits
        self.delimiters, self.stop_strings = tuple(delimiters), tuple(stop_strings)
        self.controls, self.max_rows = controls, rows
        self.encode = encode or policy.spelling.encode_prompt
        self.decode = policy.spelling.decode
        self.log_truncation, self.prices = log_truncation, prices

    @property
    def temperature(self) -> float:
        """Temperature of the policy."""
        return self.controls.temperature

    def check_fits(self, sampler: Sampler | Explorer, num_particles: int) -> None:
        """Refuse a number of particles whose prefixes would be too many to store.

        Raises:
            ConfigurationError: see above.
        """
        plan = plan_of(sampler, num_particles, self.limits.max_steps)
        rows = plan.rows + plan.stored
        if rows > MAX_STORED:
            raise ConfigurationError(
                f"{num_particles:,} particles need {rows:,} prefixes of one problem; "
                f"at most {MAX_STORED:,} are stored. Lower the budget."
            )

    def check_needs(self, sampler: Sampler | Explorer, controls: Controls) -> None:
        """Refuse a method, a reward or controls that the server does not support.

        Args:
            sampler: of the method.
            controls: of the run.

        Raises:
            CapabilityError: see above.
        """
        abilities = self.policy.abilities
        abilities.check_controls(controls)
        if isinstance(sampler, Explorer):
            check_needs(sampler, abilities.store(controls))
        if self.scorer.needs_log_probs:
            check_known(self.scorer.name, abilities, controls)

    def problems_at_once(self, sampler: Sampler | Explorer, num_particles: int) -> int:
        """Maximum number of problems that run at once."""
        plan = plan_of(sampler, num_particles, self.limits.max_steps)
        max_problems = problems_in_work(plan, ROWS_PER_DRAW * self.max_rows, MAX_STORED)
        slots = self.policy.abilities.slots
        if slots is None:
            return max_problems
        return max(1, min(max_problems, slots // plan.rows))

    def stream(
        self,
        sampler: Sampler | Explorer,
        key: AnyKey,
        problems: Sequence[Problem],
        num_particles: int,
        *,
        extract: Callable[[str], str | None],
        temperature: float | None = None,
        proposal_temperature: float | None = None,
        truncation: Truncation | None = None,
        progress: Callable[[Progress], None] | None = None,
        exact: bool = False,
    ) -> Iterator[Result]:
        """Run a sampler, and yield each result as its problem ends.

        Arguments are those of :meth:`tsi.engine.engine.Engine.stream`, but `exact` has
        no effect: it makes the local engine wait for its device before it reads a time.

        Raises:
            CapabilityError: the method needs what the server cannot do, or a proposal
                other than the policy.
            ConfigurationError: see `tsi.engine.engine.Engine.stream`.
            PromptTooLongError: see `encode_problem`.
            ServerError: the server cannot encode a prompt.
            ProblemError: the server, the reward or `extract` failed on some problems;
                raised after all others have ended.
        """
        check_method(sampler)
        key = single_key(key)
        check_num_particles(num_particles)
        controls = self.controls.change(temperature, truncation)
        # The policy's own temperature has been checked; 0 accepts every proposal.
        check_temperatures(0.0, proposal_temperature)
        if proposal_temperature not in (None, controls.temperature):
            raise CapabilityError(
                f"A proposal at temperature {proposal_temperature:g}, and not at the "
                f"policy's own of {controls.temperature:g}, needs log p and log q of "
                "each token, and a server gives one of them. Leave it out: over a "
                "server the policy itself proposes."
            )
        self.check_needs(sampler, controls)
        needs = tuple(sampler.needs) if isinstance(sampler, Explorer) else ()
        self.check_fits(sampler, int(num_particles))
        check_ids(problems)
        prompts = [tuple(self.encode_problem(problem)) for problem in problems]
        if not problems:
            return iter(())
        self.scorer.prepare([problem.prompt for problem in problems])
        method = method_of(sampler, num_particles, self.limits.max_steps)
        ids = id_words(problem.id for problem in problems)
        places = min(len(problems), self.problems_at_once(sampler, num_particles))
        log_probs = "log_prob" in needs or self.scorer.needs_log_probs
        knows = self.policy.abilities.knows_log_prob(controls)
        drawing = Drawing(
            self.policy.abilities.model,
            controls,
            self.delimiters,
            self.stop_strings,
            tuple(self.policy.spelling.eos_ids),
            log_probs=log_probs or ("replay" in needs and knows),
        )

        def lane_of(group: int, sizes: Sizes) -> ServedLane:
            return ServedLane(
                self.policy,
                self.scorer,
                method,
                key,
                prompts,
                ids,
                self.limits,
                drawing,
                sizes.problems,
                self.log_truncation,
            )

        lengths = np.asarray([len(prompt) for prompt in prompts])
        sizes = Sizes(self.max_rows, places, 1, 1, 1.0, 1, 1, False, False)
        outcomes = Outcomes(
            sampler,
            num_particles,
            self.encode,
            self.decode,
            extract,
            functools.partial(slot_costs, self.policy.abilities.num_weights),
        )
        # Lanes have the same interface as those of the local engine.
        make: Any = lane_of
        run = EngineRun(
            problems, make, 1, sizes, outcomes, (lengths, lengths), progress
        )
        record = self._recorder()
        return run.results(lambda: record(run.report([None])))

    def encode_problem(self, problem: Problem) -> list[int]:
        """See :class:`tsi.engine.base.BaseEngine`."""
        tokens = self.encode(problem.prompt)
        if not tokens:
            raise ConfigurationError(
                f"The prompt of problem {problem.id!r} is empty; give it a text."
            )
        context, limit = self.policy.abilities.context, self.limits.max_tokens
        # Code points are not tokens: only the server can count the tokens of a text.
        is_counted = context is not None and self.policy.abilities.takes_ids
        if is_counted and context is not None and len(tokens) + limit > context:
            raise PromptTooLongError(
                f"The prompt of problem {problem.id!r} has {len(tokens)} tokens; with "
                f"max_tokens={limit} it exceeds the server's context of {context}. "
                "Shorten the prompt, lower max_tokens, or start the server with a "
                "larger context."
            )
        return tokens


def slot_costs(
    num_weights: float | None, cost: Spending, prompt_length: int, read_length: int
) -> SlotCosts:
    """Cost of each row of a problem: two FLOPs per weight and token, no attention.

    Args:
        num_weights: number of the policy's weights; None makes FLOPs NaN.
        cost: cost of the problem's working rows.
        prompt_length: tokens of the prompt, which is read once.
        read_length: unused; the prompt tokens that a reward model reads are counted
            with its scores.
    """
    del read_length
    per_token = math.nan if num_weights is None else 2.0 * num_weights
    tokens = (cost.generated + cost.repeated).astype(float)
    return SlotCosts(
        generated_tokens=cost.generated,
        reward_tokens=cost.reward_read,
        flops=per_token * tokens,
        reward_flops=np.zeros(len(tokens)),
        prompt_reward_tokens=0,
        prompt_flops=per_token * prompt_length,
        prompt_reward_flops=0.0,
        sent_tokens=cost.prompt,
        cached_tokens=cost.cached,
        retokenized_steps=cost.retokenized,
    )
