"""The explorer contract: samplers that hold a store of prefixes.

A `Sampler` sees one generation of particles, each of which replaces its parent. Tree
search, Markov chain Monte Carlo, conditional SMC and lookahead return to earlier
prefixes. An `Explorer` therefore has a store of M prefixes. In each turn it chooses W
prefixes to extend, and the places at which their children are stored:

    state = init(key, N, max_steps)
    state, request = ask(key, state)
    (each row: the stored parent, cut back if the request says so, takes one step)
    state, info = tell(key, state, reply)

Like a sampler, it never sees a token or a model. `tsi.run` and the engine accept both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.picklable import Recipe, describe, reduce_to_recipe
from tsi.sampler import Select
from tsi.weights import weight_dtype


def undefined_ess() -> Float[Array, ""]:
    """The effective sample size of a method without weights: NaN."""
    return jnp.full((), jnp.nan, weight_dtype())


class Plan(NamedTuple):
    """The sizes that an explorer needs for a budget.

    Attributes:
        rows: W, number of prefixes extended per turn.
        stored: M, number of prefixes stored.
        turns: the maximum number of turns of a run.
    """

    rows: int
    stored: int
    turns: int


class Request(NamedTuple):
    """The request of an explorer in one turn.

    Attributes:
        parents: index of each stored prefix to extend, [W].
        slots: index at which each child is stored, [W]; a child with an index of M or
            more is not stored.
        extend: whether the row takes a step, [W]; if not, it is copied unchanged.
        depths: number of steps to which each parent is first cut back, [W]; None for no
            cuts. Needs a target with `truncate`.
        sources: index of the stored prefix whose step is repeated instead of drawing a
            new one, [W]; -1 draws a new one. None if all are new. Needs a target with
            `replay`.
    """

    parents: Int[Array, "W"]
    slots: Int[Array, "W"]
    extend: Bool[Array, "W"]
    depths: Int[Array, "W"] | None = None
    sources: Int[Array, "W"] | None = None


class Reply(NamedTuple):
    """The results of a turn; the numbers of rows that took no step are arbitrary.

    Attributes:
        log_potentials: of the extended prefixes, [W].
        log_corrections: log p - log q of the step, [W]; zero for a repeated step if the
            target has no `log_proposal`.
        log_probs: log p of the step, [W]; zero for a new step if the target has no
            `log_prob`.
        finished: prefixes that take no further step, [W].
    """

    log_potentials: Float[Array, "W"]
    log_corrections: Float[Array, "W"]
    log_probs: Float[Array, "W"]
    finished: Bool[Array, "W"]


@runtime_checkable
class ExplorerState(Protocol):
    """The fields that the state of every explorer must have."""

    @property
    def done(self) -> Bool[Array, "*batch"]:
        """Whether the run is over."""

    @property
    def members(self) -> Int[Array, "*batch K"]:
        """Indices of the result's particles among the stored prefixes; may repeat."""

    @property
    def log_weights(self) -> Float[Array, "*batch K"]:
        """Log weights of the members with mean weight one."""

    @property
    def log_evidence(self) -> Float[Array, "*batch"]:
        """Log of the evidence estimate, which is unbiased; 0 without a target."""

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
        ess: effective sample size of the weights of the current particle system, which
            may have fewer than N particles; NaN for searches and chains of single
            states, which have no such weights.
        num_recoveries: number of populations that lost all weight in this turn.
        num_invalid: number of rows with a weight of NaN or +inf.
    """

    parents: Int[Array, "W"]
    slots: Int[Array, "W"]
    ess: Float[Array, ""]
    num_recoveries: Int[Array, ""]
    num_invalid: Int[Array, ""]


class Explorer(NamedTuple):
    """Pure functions and properties of the method, as in `tsi.sampler.Sampler`.

    Attributes:
        plan: `(num_particles, max_steps) -> Plan`. Raises `ConfigurationError` for a
            budget that the method cannot use.
        init: `(key, num_particles, max_steps) -> state`. Every stored prefix is empty.
        ask: `(key, state) -> (state, Request)`.
        tell: `(key, state, Reply) -> (state, info)`; `info` has the fields of
            `ExplorerInfo`.
        path_log_weight: as in `Sampler`; None for a search.
        select: how one answer is chosen, as in `Sampler`.
        needs: capabilities that the target must have, see `tsi.target.CAPABILITIES`.
        power: the target density is p(path)^power exp(path_log_weight).
        endless: whether it is never done and its store does not fill up, so that it can
            be run move by move, for instance by numpyro's MCMC.
        auxiliary: path weights of further targets that are sampled jointly; the
            reported evidence is the product of theirs and the target's.
        auxiliary_temperatures: temperatures of these targets, if they are tempered
            versions of the first; empty if they are not, or if the temperatures adapt.
        chain: whether its particles are states of Markov chains. These depend on each
            other, so weights alone give no standard errors.
        acceptance: `state -> fraction` of moves accepted so far, NaN before the first
            move; None for a method without an accept step.
        default_particles: N of an endless explorer if the caller gives none.
        recipe: the call that made it, see `tsi.picklable`.
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

    def __repr__(self) -> str:
        return describe(self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return reduce_to_recipe(self)
