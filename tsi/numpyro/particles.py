"""Particles of a program target, with the history of their steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError


class ProgramStep(NamedTuple):
    """One step of one particle; in a history every leaf has leading axes N, T.

    Attributes:
        key: key of the step, so that a replay also repeats the sites that
            `handlers.block` hides.
        latents: value of each latent site of `step_fn`, by name.
        deterministics: value of each of its `numpyro.deterministic` sites, by name.
        carry: the carry that `step_fn` returned.
        log_prob: log p of the step's latent sites.
        log_potential: log G_t.
        log_correction: log p - log q of the step.
    """

    key: Key[Array, "*batch"]
    latents: dict[str, Any]
    deterministics: dict[str, Any]
    carry: Any
    log_prob: Float[Array, "*batch"]
    log_potential: Float[Array, "*batch"]
    log_correction: Float[Array, "*batch"]


class ProgramParticles(NamedTuple):
    """Runs of a program so far.

    Attributes:
        carry: current carry, leaves [N, ...]; zeros before the first step if `init_fn`
            has sites.
        initial: value of each latent site of `init_fn`, by name, [N, ...].
        initial_deterministics: value of each `numpyro.deterministic` site of `init_fn`.
        history: the steps so far, leaves [N, T, ...]; values from `length` on are
            arbitrary.
        length: number of steps taken, [N].
        finished: [N].
    """

    carry: Any
    initial: dict[str, Any]
    initial_deterministics: dict[str, Any]
    history: ProgramStep
    length: Int[Array, "N"]
    finished: Bool[Array, "N"]


def as_arrays(tree: Any) -> Any:
    """Convert the Python numbers of a carry to arrays."""
    return jax.tree.map(jnp.asarray, tree)


def check_carry(before: Any, after: Any) -> None:
    """Check that a step returns a carry like the one that it gets.

    Args:
        before: the carry that a step gets, arrays.
        after: the carry that it returns.

    Raises:
        ConfigurationError: if structure, shapes or dtypes differ.
    """

    def shapes(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
        )

    given, returned = shapes(before), shapes(after)
    if jax.tree.flatten(given) != jax.tree.flatten(returned):
        raise ConfigurationError(
            "step_fn must return a carry with the structure, shapes and dtypes of the "
            f"carry that it gets; it gets {given} and returns {returned}. Make init_fn "
            "return a carry like that of step_fn. Use `end` to state whether a "
            "particle has finished."
        )
