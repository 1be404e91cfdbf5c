"""The sampler contract: what decides which particles live.

A sampler never sees a token or a model. It is asked which stored prefixes to extend
(`ask`), and told the log potentials of the extended prefixes (`tell`):

    state = init(key, N)
    state, ancestors = ask(key, state)
    (the target gathers the ancestors and extends each by one step)
    state, info = tell(key, state, log_potentials, log_corrections, finished)

That is why one file of a page is a whole method, why a table of numbers can prove it,
and why the same sampler runs in `tsi.run` and in an engine that juggles many problems.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tsi.picklable import Recipe, reduced

Select = str
"""How one answer is chosen: posterior, argmax, vote or weighted_vote."""


@runtime_checkable
class SamplerState(Protocol):
    """What every sampler's state shows to the outside, whatever else it holds."""

    @property
    def log_weights(self) -> Float[Array, "*batch N"]:
        """Log weights with mean weight one."""

    @property
    def log_evidence(self) -> Float[Array, "*batch"]:
        """The logarithm of an unbiased estimate of the target's evidence."""

    @property
    def log_potentials(self) -> Float[Array, "*batch N"]:
        """The last log potential of each particle, before any transform."""

    @property
    def finished(self) -> Bool[Array, "*batch N"]:
        """True for particles that take no further step."""


class Sampler(NamedTuple):
    """Three pure functions and two facts about them.

    Attributes:
        init: `(key, num_particles) -> state`. Raises `ConfigurationError` for a number
            of particles that the method cannot use.
        ask: `(key, state) -> (state, ancestors)`, `ancestors` int32 [N]: which stored
            prefixes to extend by one step.
        tell: `(key, state, log_potentials [N], log_corrections [N], finished [N]) ->
            (state, info)`. A particle that had finished before this step contributes
            nothing, whatever numbers it is told.
        path_log_weight: what the sampler claims to target. Maps the log potentials of
            a path [..., T] and the mask of its live steps [..., T] (true up to and
            including the step that finished) to the path's log weight [...]; the
            target density is p(path) exp(path_log_weight). None where the method has
            no defined target (beam search, DVTS, REBASE).
        select: how one answer is chosen: "posterior", "argmax", "vote" or
            "weighted_vote".
        prunes: particles of weight zero are hopeless for good, and drivers need not
            extend them.
        recipe: how it was made, see `tsi.picklable`.
    """

    init: Callable[..., Any]
    ask: Callable[..., Any]
    tell: Callable[..., Any]
    path_log_weight: Callable[..., Any] | None = None
    select: Select = "posterior"
    prunes: bool = False
    recipe: Recipe | None = None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return reduced(self)


def has_no_weight(state: SamplerState) -> Bool[Array, "*batch N"]:
    """Particles of weight zero, which a sampler that `prunes` will not extend."""
    return state.log_weights == -jnp.inf
