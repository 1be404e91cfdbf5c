"""The explorer contract: samplers that hold a store of prefixes.

A `Sampler` sees one generation of particles, each of which replaces its parent. Tree
search, Markov chain Monte Carlo, conditional SMC and lookahead go back to prefixes that
they saw before. An `Explorer` therefore has a store of M prefixes. At each turn it asks
for W of them to be extended and says where the children are kept:

    state = init(key, N, max_steps)
    state, request = ask(key, state)
    (each row: the stored parent, cut back if the request says so, takes one step)
    state, info = tell(key, state, reply)

Like a sampler it never sees a token or a model. `tsi.run` and the engine take either.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.picklable import Recipe, reduced
from tsi.sampler import Select
from tsi.weights import weight_dtype


def no_size() -> Float[Array, ""]:
    """The effective sample size of what has no weights: NaN."""
    return jnp.full((), jnp.nan, weight_dtype())


class Plan(NamedTuple):
    """How much room an explorer needs for a budget.

    Attributes:
        rows: W, prefixes extended in one turn.
        stored: M, prefixes kept.
        turns: the most turns a run may take.
    """

    rows: int
    stored: int
    turns: int


class Request(NamedTuple):
    """What is done in one turn.

    Attributes:
        parents: stored prefixes, [W].
        slots: where the children are kept, [W]; a number from M on means nowhere.
        extend: whether the row takes a step, [W]; if not, it is copied as it is.
        depths: each parent is first cut back to so many steps, [W]; None for no cuts.
            Needs a target with `truncate`.
        sources: the stored prefix whose step is repeated in place of a new one, [W], -1
            for a new one; None if all are new. Needs a target with `replay`.
    """

    parents: Int[Array, "W"]
    slots: Int[Array, "W"]
    extend: Bool[Array, "W"]
    depths: Int[Array, "W"] | None = None
    sources: Int[Array, "W"] | None = None


class Reply(NamedTuple):
    """What came of a turn; only rows that took a step have numbers that mean anything.

    Attributes:
        log_potentials: of the extended prefixes, [W].
        log_corrections: log p - log q of the step, [W]; of a repeated one zero, if the
            target has no `log_proposal`.
        log_probs: log p of the step, [W]; of a new one zero, if the target has no
            `log_prob`.
        finished: prefixes that take no further step, [W].
    """

    log_potentials: Float[Array, "W"]
    log_corrections: Float[Array, "W"]
    log_probs: Float[Array, "W"]
    finished: Bool[Array, "W"]


@runtime_checkable
class ExplorerState(Protocol):
    """What every explorer's state shows to the outside, whatever else it holds."""

    @property
    def done(self) -> Bool[Array, "*batch"]:
        """Whether the run is over."""

    @property
    def members(self) -> Int[Array, "*batch K"]:
        """The stored prefixes that are the result's particles; one may come twice."""

    @property
    def log_weights(self) -> Float[Array, "*batch K"]:
        """Log weights of the members with mean weight one."""

    @property
    def log_evidence(self) -> Float[Array, "*batch"]:
        """The logarithm of an unbiased estimate of the target's evidence."""

    @property
    def log_potentials(self) -> Float[Array, "*batch K"]:
        """The last log potential of each member, before any transform."""

    @property
    def finished(self) -> Bool[Array, "*batch K"]:
        """Whether each member is a whole solution."""


class ExplorerInfo(NamedTuple):
    """Diagnostics of one turn.

    Attributes:
        parents: as requested, [W].
        slots: as requested, [W].
        ess: effective sample size of the weights of the particle system in use, which
            may be smaller than N; NaN for searches and chains of single states, which
            have no such weights.
        num_recoveries: populations that newly lost all weight.
        num_invalid: rows told a NaN or infinite weight.
    """

    parents: Int[Array, "W"]
    slots: Int[Array, "W"]
    ess: Float[Array, ""]
    num_recoveries: Int[Array, ""]
    num_invalid: Int[Array, ""]


class Explorer(NamedTuple):
    """Pure functions and facts, as in `tsi.sampler.Sampler`.

    Attributes:
        plan: `(num_particles, max_steps) -> Plan`. Raises `ConfigurationError` for a
            budget that the method cannot use.
        init: `(key, num_particles, max_steps) -> state`. Every stored prefix is empty.
        ask: `(key, state) -> (state, Request)`.
        tell: `(key, state, Reply) -> (state, info)`; `info` has the fields of
            `ExplorerInfo`.
        path_log_weight: as in `Sampler`; None for a search.
        select: how one answer is chosen.
        needs: capabilities that the target must have, see `tsi.target.CAPABILITIES`.
        power: the target density is p(path)^power exp(path_log_weight).
        endless: it is never done and its store does not fill up, so that it can be run
            move by move, for instance by numpyro's MCMC.
        auxiliary: path weights of further targets that were sampled along; the reported
            evidence is the product of theirs and the target's own.
        auxiliary_temperatures: of these targets, where each is a temperature of the
            first; empty where they are not, or where the temperatures adapt.
        chain: its particles are states of Markov chains, which depend on each other:
            their weights alone tell no error.
        acceptance: `state -> fraction` of moves accepted so far, NaN before the first;
            None for a method that accepts none.
        default_particles: the N that an endless explorer is run with where none is
            given.
        recipe: how it was made, see `tsi.picklable`.
    """

    plan: Callable[[int, int], Plan]
    init: Callable[..., Any]
    ask: Callable[..., Any]
    tell: Callable[..., Any]
    path_log_weight: Callable[..., Any] | None = None
    select: Select = "posterior"
    needs: tuple[str, ...] = ()
    power: float = 1.0
    auxiliary: tuple[Callable[..., Any], ...] = ()
    auxiliary_temperatures: tuple[float, ...] = ()
    endless: bool = False
    chain: bool = False
    acceptance: Callable[..., Any] | None = None
    default_particles: int = 1
    recipe: Recipe | None = None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return reduced(self)
