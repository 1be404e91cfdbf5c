"""Deterministic selection: what search methods put in the place of resampling.

The schemes keep the signature `(key, log_weights, num_samples) -> ancestors`, ignore
the key, and are not proportional to the weights: a sampler that uses one has no defined
target, which is what the wrapper `Deterministic` says. None of them draws a particle of
zero weight while there is another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.step_keys import AnyKey, single_key
from tsi.weights import all_dead, sanitise


@dataclass(frozen=True)
class Deterministic:
    """A scheme whose expected counts are not proportional to the weights."""

    allocate: Callable[..., Array]

    def __repr__(self) -> str:
        scheme = self.allocate.__qualname__.split(".")[0].lstrip("_")
        return f"Deterministic({scheme})"

    def __call__(
        self, key: AnyKey, log_weights: Float[Array, "N"], num_samples: int
    ) -> Int[Array, "M"]:
        """Ancestors [num_samples], int32."""
        return self.allocate(single_key(key), log_weights, num_samples)


def effective_width(width: int, num_particles: int, method: str) -> int:
    """The width for N particles: a width beyond N means N.

    Raises:
        ConfigurationError: if the width is less than one or does not divide N.
    """
    if width < 1:
        raise ConfigurationError(
            f"{method} needs a width of at least one, and it is {width}."
        )
    width = min(width, num_particles)
    if num_particles % width:
        raise ConfigurationError(
            f"{method} of width {width} cannot share out {num_particles} particles: "
            f"the width must divide their number. Use a multiple of {width} particles "
            "or another width."
        )
    return width


def _best(log_weights: Float[Array, "N"], num_kept: int) -> Int[Array, "K"]:
    """The K best, best first; if fewer have weight, those again from the best."""
    weights = sanitise(log_weights)
    order = jnp.argsort(weights, descending=True, stable=True).astype(jnp.int32)
    num_alive = jnp.sum(weights > -jnp.inf)
    return order[jnp.arange(num_kept) % jnp.maximum(num_alive, 1)]


def _stay(num_samples: int, num_particles: int) -> Int[Array, "M"]:
    return jnp.arange(num_samples, dtype=jnp.int32) % num_particles


def top_k_replicate(width: int) -> Deterministic:
    """Keep the best M / width particles and copy each `width` times: beam search.

    Best first, copies side by side, ties to the lower index. A width beyond the number
    of particles means that number.

    Args:
        width: copies of each that is kept.

    Raises:
        ConfigurationError: when called, if the width does not divide the number of
            samples.
    """

    def allocate(
        key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
    ) -> Int[Array, "M"]:
        copies = effective_width(width, num_samples, "top_k_replicate")
        kept = jnp.repeat(_best(log_weights, num_samples // copies), copies)
        stay = _stay(num_samples, log_weights.shape[0])
        return jnp.where(all_dead(log_weights), stay, kept)

    return Deterministic(allocate)


def island_argmax(island_size: int) -> Deterministic:
    """Within each island of neighbours keep the best and copy it: DVTS.

    An island without weight takes the best particle of all: its own are dead, and no
    scheme draws those while another has weight.

    Args:
        island_size: particles of one island; beyond the number of particles it means
            that number.

    Raises:
        ConfigurationError: when called, if the size does not divide the number of
            particles, or if the number of samples differs from it.
    """

    def allocate(
        key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
    ) -> Int[Array, "M"]:
        num_particles = log_weights.shape[0]
        if num_samples != num_particles:
            raise ConfigurationError(
                f"island_argmax keeps every island at its size, so {num_particles} "
                f"particles cannot become {num_samples}. Ask for {num_particles}."
            )
        size = effective_width(island_size, num_particles, "island_argmax")
        islands = log_weights.reshape(-1, size)
        best = jnp.argmax(sanitise(islands), axis=1).astype(jnp.int32)
        best += jnp.arange(islands.shape[0], dtype=jnp.int32) * size
        best = jnp.where(all_dead(islands), _best(log_weights, 1), best)
        stay = _stay(num_samples, num_particles)
        return jnp.where(all_dead(log_weights), stay, jnp.repeat(best, size))

    return Deterministic(allocate)


def rebase_counts(
    log_weights: Float[Array, "N"], num_children: Int[Array, ""] | int
) -> Int[Array, "N"]:
    """REBASE's shares: ceil(W * weight_i), handed out best first while W lasts.

    Args:
        log_weights: unnormalised log weights, [N].
        num_children: W, how many children there are to hand out; may be traced.

    Returns:
        Counts [N] that sum to W; zero everywhere if no particle has weight.

    Source: Wu et al. 2024, arXiv 2408.00724, Section 3.
    """
    weights = sanitise(log_weights)
    order = jnp.argsort(weights, descending=True, stable=True)
    # Not `normalise`: an all-dead group must get no children here.
    shares = jnp.where(weights > -jnp.inf, jax.nn.softmax(weights), 0.0)
    # 0.25 * 4 must not round up to a second child: ceil of what exceeds the integer
    # by rounding alone is that integer.
    wanted = jnp.ceil(shares * num_children * (1.0 - 1e-6))[order].astype(jnp.int32)
    handed_out = jnp.minimum(jnp.cumsum(wanted), num_children)
    counts = jnp.diff(handed_out, prepend=0)
    return jnp.zeros_like(counts).at[order].set(counts)


def rebase_counts_in_turn(
    log_weights: Float[Array, "N"], num_children: Int[Array, ""] | int
) -> Int[Array, "N"]:
    """REBASE's shares as its code counts them: ceil(what is left * share of the rest).

    Best first, i gets ceil(W' w_i / sum_{j not served} w_j) of the W' that are left.

    Args:
        log_weights: unnormalised log weights, [N].
        num_children: W, how many children there are to hand out; may be traced.

    Returns:
        Counts [N] that sum to W; zero everywhere if no particle has weight.

    Source: Wu et al. 2024, arXiv 2408.00724, the code's `select_softmax`.
    """
    weights = sanitise(log_weights)
    order = jnp.argsort(weights, descending=True, stable=True)
    shares = jnp.where(weights > -jnp.inf, jax.nn.softmax(weights), 0.0)[order]
    # Summed from the smallest up: differences of sums would lose the last shares.
    rest = jnp.cumsum(shares[::-1])[::-1]
    of_rest = jnp.where(shares > 0.0, shares / rest, 0.0)

    def serve(left: Array, share: Array) -> tuple[Array, Array]:
        wanted = jnp.ceil(share * left * (1.0 - 1e-6)).astype(jnp.int32)
        return left - wanted, wanted

    _, counts = jax.lax.scan(serve, jnp.asarray(num_children, jnp.int32), of_rest)
    return jnp.zeros_like(counts).at[order].set(counts)


def _rebase_allocation(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    counts = rebase_counts(log_weights, num_samples)
    slots = jnp.arange(num_samples, dtype=jnp.int32)
    children = jnp.searchsorted(jnp.cumsum(counts), slots, side="right")
    stay = _stay(num_samples, log_weights.shape[0])
    return jnp.where(all_dead(log_weights), stay, children.astype(jnp.int32))


rebase_allocation = Deterministic(_rebase_allocation)
"""Every particle repeated `rebase_counts` times, in order of the particles."""
