"""The particles of a run as records in a file, written and read.

One record is one run of the engine on one problem: texts, answers, weights and rewards
of all its particles and, with ``--keep all``, what happened at each step. Several rows
may be derived from one record, since methods that never resample share their rollouts.
Records are lines of JSON; docs/kept_particles.md lists their fields. Numbers that are
not finite are the texts "nan", "inf" and "-inf". Records are checked when they are
read, because a file may have been edited, or be another program's.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.experiments.files.json_lines import LineError
from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.plans.plan import Batch
from tsi.experiments.rows.record_fields import RecordFields
from tsi.experiments.rows.row_format import SETTINGS_ID
from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.results.parts import FinalParticles
from tsi.results.result import Result

Keep = Literal["all", "solutions", "none"]


class RunKey(NamedTuple):
    """Which run a record is of.

    Args:
        method: whose sampler ran; `SHARED_SOURCE` for all independent methods.
        num_particles: N, the most that a method which stops early may use.
        seed: of the random numbers.
        problem: id of the problem.
    """

    method: str
    num_particles: int
    seed: int
    problem: int | str


class KeptSteps(NamedTuple):
    """What happened at each step, as in `tsi.results.parts.Steps`.

    Args:
        step_texts: the steps of each particle, or None.
        ancestors: parent of each particle at each step.
        rewards: after each step, or None if not recorded.
        ess: effective sample size after each step, or turn of an explorer.
        resampled: whether particles were resampled before each step, or None.
    """

    step_texts: list[list[str]] | None
    ancestors: Int[np.ndarray, "T N"]
    rewards: Float[np.ndarray, "T N"] | None
    ess: Float[np.ndarray, "E"]
    resampled: Bool[np.ndarray, "E"] | None


class KeptRun(NamedTuple):
    """The particles of one run.

    Args:
        key: method, N, seed and problem.
        problem: with its prompt and right answer.
        particles: at the end; see `tsi.results.parts.FinalParticles`.
        complete: which texts are whole solutions, from which an answer is read. Others
            were cut at a limit, or are prefixes that a search has dismissed.
        log_evidence: of the run; NaN without a target.
        selected: the answer that the sampler's rule selects.
        probability: of that answer; 0 if there is none.
        unanswered: share of the weight on particles without an answer.
        settings: as rows record them.
        steps: None unless all was kept.
    """

    key: RunKey
    problem: Problem
    particles: FinalParticles
    complete: Bool[np.ndarray, "N"]
    log_evidence: float
    selected: str | None
    probability: float
    unanswered: float
    settings: dict[str, Any]
    steps: KeptSteps | None = None

    @property
    def texts_id(self) -> str:
        """By which rows name this record; see `id_of_texts`."""
        return id_of_texts(self.particles.texts)


def id_of_texts(texts: Sequence[str]) -> str:
    """The hash by which a row names the record from which it was computed.

    A run that is repeated need not draw the same texts, for example over a server
    without seeds. If it does, rounding does not change the hash.
    """
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:12]


def record_of(
    batch: Batch,
    problem: Problem,
    result: Result,
    extract: Callable[[str], str | None],
    max_steps: int,
    keep: Keep,
) -> dict[str, Any]:
    """The record of a result, without its settings.

    Args:
        batch: of the run.
        problem: of the result.
        result: of the engine, before rows are derived from it.
        extract: the extractor that has read its answers.
        max_steps: the target's step limit.
        keep: "solutions", or "all" with the steps.
    """
    particles, steps = result.particles, result.steps
    key = RunKey(batch.source, batch.num_particles, batch.seed, problem.id)
    record: dict[str, Any] = {
        **key._asdict(),
        "prompt": problem.prompt,
        "answer": problem.answer,
        "texts": particles.texts,
        "answers": particles.answers,
        "log_weights": _as_numbers(particles.log_weights),
        "rewards": _as_numbers(particles.rewards),
        "truncated": _as_flags(particles.truncated, len(particles.texts)),
        "complete": _complete(batch, result, extract, max_steps).tolist(),
        "log_evidence": _as_number(result.log_evidence),
        "selected": result.selected,
        "probability": float(result.answer_posterior.get(result.selected or "", 0.0)),
        "unanswered": float(result.unanswered),
    }
    if problem.data:
        record["data"] = problem.data
    if particles.log_corrections is not None:
        record["log_corrections"] = _as_numbers(particles.log_corrections)
    if keep == "all":
        record |= {
            "step_texts": particles.step_texts,
            "ancestors": np.asarray(steps.ancestors).tolist(),
            "step_rewards": _as_numbers(steps.rewards),
            "ess": _as_numbers(steps.ess),
            "resampled": None
            if steps.resampled is None
            else np.asarray(steps.resampled, bool).tolist(),
        }
    return record


def _complete(
    batch: Batch,
    result: Result,
    extract: Callable[[str], str | None],
    max_steps: int,
) -> Bool[np.ndarray, "N"]:
    """Which particles count as solutions from which an answer is read."""
    particles = result.particles
    complete = ~np.array(_as_flags(particles.truncated, len(particles.texts)), bool)
    if isinstance(sampler_of(batch.source, max_steps), Explorer):
        weightless = np.isneginf(np.asarray(particles.log_weights))
        complete &= ~weightless | weightless.all()
    for n in np.flatnonzero(complete):
        # A prefix that has not ended has no answer, whatever its text says.
        if particles.answers[n] is None and extract(particles.texts[n]) is not None:
            complete[n] = False
    return complete


def parse_record(record: dict[str, Any], settings: dict[str, Any]) -> KeptRun:
    """The run of a record.

    Raises:
        LineError: a field is missing or has another type.
    """
    fields = RecordFields(record)
    key = RunKey(
        fields.text("method"),
        fields.count("num_particles", 1),
        fields.count("seed", 0),
        fields.identity("problem"),
    )
    texts = fields.texts("texts")
    size = len(texts)
    steps = None
    if "ancestors" in record:
        ancestors = fields.matrix("ancestors", size)
        is_index = np.isfinite(ancestors) & (ancestors >= 0) & (ancestors < size)
        if not (is_index & (ancestors == np.floor(ancestors))).all():
            raise LineError("its ancestors are not indices of particles")
        has_rewards = record.get("step_rewards") is not None
        ess = fields.numbers("ess")
        steps = KeptSteps(
            fields.step_texts("step_texts", size),
            ancestors.astype(np.int32),
            fields.matrix("step_rewards", size) if has_rewards else None,
            ess,
            None
            if record.get("resampled") is None
            else fields.flags("resampled", len(record["resampled"])),
        )
    return KeptRun(
        key,
        Problem(
            key.problem,
            fields.text("prompt"),
            fields.text("answer"),
            fields.table("data"),
        ),
        FinalParticles(
            texts,
            fields.optional_texts("answers", size),
            fields.numbers("rewards", size),
            fields.numbers("log_weights", size),
            None if steps is None else steps.step_texts,
            fields.flags("truncated", size),
            log_corrections=fields.numbers("log_corrections", size)
            if "log_corrections" in record
            else None,
        ),
        fields.flags("complete", size),
        fields.number("log_evidence"),
        fields.optional_text("selected"),
        fields.number("probability"),
        fields.number("unanswered"),
        settings,
        steps,
    )


def _as_number(value: Any) -> float | str:
    value = float(value)
    return value if np.isfinite(value) else str(value)


def _as_numbers(values: Any) -> Any:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim > 1:
        return [_as_numbers(row) for row in array]
    return [_as_number(value) for value in array]


def _as_flags(flags: Any, size: int) -> list[bool]:
    return [False] * size if flags is None else np.asarray(flags, bool).tolist()


def record_line(record: dict[str, Any], settings_id: str) -> bytes:
    """The line of a file with a record."""
    return (
        json.dumps({**record, SETTINGS_ID: settings_id}, allow_nan=False).encode()
        + b"\n"
    )
