"""Particles of a program: every step that each of them took."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError


class ProgramStep(NamedTuple):
    """One step of one particle; in a history every leaf has leading axes N, T.

    Attributes:
        key: of all the step's randomness, so that replaying a step repeats what
            `handlers.block` hides too.
        latents: value of each latent site of `step_fn`, by name.
        deterministics: value of each of its `numpyro.deterministic` sites, by name.
        carry: what `step_fn` returned.
        log_prob: log p of the step's latent sites.
        log_potential: log G_t.
        log_correction: log p - log q, had the step been drawn by the proposal.
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
        carry: present carry, leaves [N, ...]; zeros before the first step of a
            program whose `init_fn` has sites.
        initial: value of each latent site of `init_fn`, by name, [N, ...].
        initial_deterministics: and of each `numpyro.deterministic` site.
        history: every step taken, leaves [N, T, ...]; what stands at `length` and
            after means nothing.
        length: steps taken, [N].
        finished: [N].
    """

    carry: Any
    initial: dict[str, Any]
    initial_deterministics: dict[str, Any]
    history: ProgramStep
    length: Int[Array, "N"]
    finished: Bool[Array, "N"]


def as_arrays(tree: Any) -> Any:
    """A carry whose Python numbers have become arrays."""
    return jax.tree.map(jnp.asarray, tree)


def check_carry(before: Any, after: Any) -> None:
    """Refuse a step whose carry could not be the next step's.

    Args:
        before: the carry that a step is given, arrays.
        after: the one that it returns.

    Raises:
        ConfigurationError: structure, shapes or dtypes differ.
    """

    def shapes(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
        )

    given, returned = shapes(before), shapes(after)
    if jax.tree.flatten(given) != jax.tree.flatten(returned):
        raise ConfigurationError(
            "step_fn must return a carry of the structure, shapes and dtypes that it "
            f"is given; it is given {given} and returns {returned}. Make init_fn "
            "return a carry like step_fn's; whether a particle has finished is said "
            "by `end`."
        )
