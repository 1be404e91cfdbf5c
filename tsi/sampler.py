"""The sampler contract: a sampler decides which particles survive.

A sampler never sees a token or a model. `ask` returns the ancestor of each particle of
the next step, and `tell` takes the log potentials of the extended particles:

    state = init(key, N)
    state, ancestors = ask(key, state)
    (the target gathers the ancestors and extends each by one step)
    state, info = tell(key, state, log_potentials, log_corrections, finished)

A method therefore fits into one short file and can be tested on a table of numbers, and
the same sampler runs in `tsi.run` and in the engine, which works on many problems at
once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tsi.picklable import Recipe, describe, reduce_to_recipe

Select = str
"""How one answer is chosen: posterior, argmax, vote or weighted_vote."""


@runtime_checkable
class SamplerState(Protocol):
    """The fields that the state of every sampler must have."""

    @property
    def log_weights(self) -> Float[Array, "*batch N"]:
        """Log weights with mean weight one."""

    @property
    def log_evidence(self) -> Float[Array, "*batch"]:
        """Log of the evidence estimate, which is unbiased; 0 without a target."""

    @property
    def log_potentials(self) -> Float[Array, "*batch N"]:
        """The last log potential of each particle, before any transform."""

    @property
    def finished(self) -> Bool[Array, "*batch N"]:
        """True for particles that take no further step."""


class Sampler(NamedTuple):
    """Three pure functions, and properties of the method.

    Attributes:
        init: `(key, num_particles) -> state`. Raises `ConfigurationError` for a number
            of particles that the method cannot use.
        ask: `(key, state) -> (state, ancestors)`, `ancestors` int32 [N]: which stored
            prefixes to extend by one step.
        tell: `(key, state, log_potentials [N], log_corrections [N], finished [N]) ->
            (state, info)`. The numbers of a particle that had finished before this step
            are ignored.
        path_log_weight: the target of the sampler. Maps the log potentials of a path
            [..., T] and its step mask [..., T] (true up to and including the step that
            finished) to the path's log weight [...]. The target density is
            p(path) exp(path_log_weight). None for a method without a target (beam
            search, DVTS, REBASE).
        select: how one answer is chosen: "posterior", "argmax", "vote" or
            "weighted_vote".
        prunes: whether particles of weight zero keep weight zero, so that drivers need
            not extend them.
        recipe: the call that made it, see `tsi.picklable`.
    """

    init: Callable[..., Any]
    ask: Callable[..., Any]
    tell: Callable[..., Any]
    path_log_weight: Callable[..., Any] | None = None
    select: Select = "posterior"
    prunes: bool = False
    recipe: Recipe | None = None

    def __repr__(self) -> str:
        return describe(self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return reduce_to_recipe(self)


def has_no_weight(state: SamplerState) -> Bool[Array, "*batch N"]:
    """Whether each particle has weight zero; a sampler that `prunes` ignores these."""
    return state.log_weights == -jnp.inf
