"""Deterministic selection, which search methods use instead of resampling.

The schemes have the signature of resampling, `(key, log_weights, num_samples) ->
ancestors`, and ignore the key. Their counts are not proportional to the weights, so a
sampler that uses one has no target; the wrapper `Deterministic` marks them. No scheme
selects a particle of zero weight while another has weight.
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
    """The width for N particles; values above N mean N.

    Raises:
        ConfigurationError: if the width is less than one or does not divide N.
    """
    if width < 1:
        raise ConfigurationError(
            f"{method} needs a width of at least one; got {width}."
        )
    width = min(width, num_particles)
    if num_particles % width:
        raise ConfigurationError(
            f"{method} of width {width} cannot divide {num_particles} particles: the "
            f"width must divide their number. Use a multiple of {width} particles or "
            "another width."
        )
    return width


def _select_best(log_weights: Float[Array, "N"], num_kept: int) -> Int[Array, "K"]:
    """The K best particles, best first; repeated if fewer have weight."""
    weights = sanitise(log_weights)
    order = jnp.argsort(weights, descending=True, stable=True).astype(jnp.int32)
    num_alive = jnp.sum(weights > -jnp.inf)
    return order[jnp.arange(num_kept) % jnp.maximum(num_alive, 1)]


def _keep_places(num_samples: int, num_particles: int) -> Int[Array, "M"]:
    return jnp.arange(num_samples, dtype=jnp.int32) % num_particles


def top_k_replicate(width: int) -> Deterministic:
    """Keep the best M / width particles and copy each `width` times: beam search.

    The best particle comes first, copies are adjacent, and the lower index wins a tie.
    A width above the number of particles means that number.

    Args:
        width: copies per kept particle.

    Raises:
        ConfigurationError: when called, if the width does not divide the number of
            samples.
    """

    def allocate(
        key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
    ) -> Int[Array, "M"]:
        copies = effective_width(width, num_samples, "top_k_replicate")
        indices = jnp.repeat(_select_best(log_weights, num_samples // copies), copies)
        places = _keep_places(num_samples, log_weights.shape[0])
        return jnp.where(all_dead(log_weights), places, indices)

    return Deterministic(allocate)


def island_argmax(island_size: int) -> Deterministic:
    """Keep the best particle of each island of neighbours and copy it: DVTS.

    An island without weight gets the best particle of all islands, since no scheme
    selects dead particles while another has weight.

    Args:
        island_size: particles per island; values above the number of particles mean
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
                f"island_argmax keeps the size of every island, so {num_particles} "
                f"particles cannot become {num_samples}. Draw {num_particles} samples."
            )
        size = effective_width(island_size, num_particles, "island_argmax")
        islands = log_weights.reshape(-1, size)
        best = jnp.argmax(sanitise(islands), axis=1).astype(jnp.int32)
        best += jnp.arange(islands.shape[0], dtype=jnp.int32) * size
        best = jnp.where(all_dead(islands), _select_best(log_weights, 1), best)
        places = _keep_places(num_samples, num_particles)
        return jnp.where(all_dead(log_weights), places, jnp.repeat(best, size))

    return Deterministic(allocate)


def rebase_counts(
    log_weights: Float[Array, "N"], num_children: Int[Array, ""] | int
) -> Int[Array, "N"]:
    """Child counts of REBASE: ceil(W * weight_i), best first until W is used up.

    Args:
        log_weights: unnormalised log weights, [N].
        num_children: W, the number of children to allocate; may be traced.

    Returns:
        Counts [N] that sum to W; zero everywhere if no particle has weight.

    Source: Wu et al. 2024, arXiv 2408.00724, Section 3.
    """
    weights = sanitise(log_weights)
    order = jnp.argsort(weights, descending=True, stable=True)
    # Not `normalise`: a group without weight must get no children.
    shares = jnp.where(weights > -jnp.inf, jax.nn.softmax(weights), 0.0)
    # 0.25 * 4 must not round up to a second child, so a number that exceeds an integer
    # by rounding only counts as that integer.
    rounded_shares = jnp.ceil(shares * num_children * (1.0 - 1e-6))[order].astype(
        jnp.int32
    )
    totals = jnp.minimum(jnp.cumsum(rounded_shares), num_children)
    counts = jnp.diff(totals, prepend=0)
    return jnp.zeros_like(counts).at[order].set(counts)


def rebase_counts_in_turn(
    log_weights: Float[Array, "N"], num_children: Int[Array, ""] | int
) -> Int[Array, "N"]:
    """Child counts of REBASE's code: shares of the children that are left.

    In order of the weights, i gets ceil(W' w_i / sum_{j not served} w_j) children,
    where W' is the number of children that are left.

    Args:
        log_weights: unnormalised log weights, [N].
        num_children: W, the number of children to allocate; may be traced.

    Returns:
        Counts [N] that sum to W; zero everywhere if no particle has weight.

    Source: Wu et al. 2024, arXiv 2408.00724, the code's `select_softmax`.
    """
    weights = sanitise(log_weights)
    order = jnp.argsort(weights, descending=True, stable=True)
    shares = jnp.where(weights > -jnp.inf, jax.nn.softmax(weights), 0.0)[order]
    # Sum from the smallest share: differences of sums would lose the last shares.
    remaining_shares = jnp.cumsum(shares[::-1])[::-1]
    relative_shares = jnp.where(shares > 0.0, shares / remaining_shares, 0.0)

    def serve(num_left: Array, share: Array) -> tuple[Array, Array]:
        count = jnp.ceil(share * num_left * (1.0 - 1e-6)).astype(jnp.int32)
        return num_left - count, count

    _, counts = jax.lax.scan(
        serve, jnp.asarray(num_children, jnp.int32), relative_shares
    )
    return jnp.zeros_like(counts).at[order].set(counts)


def _rebase_allocation(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    counts = rebase_counts(log_weights, num_samples)
    slots = jnp.arange(num_samples, dtype=jnp.int32)
    children = jnp.searchsorted(jnp.cumsum(counts), slots, side="right")
    places = _keep_places(num_samples, log_weights.shape[0])
    return jnp.where(all_dead(log_weights), places, children.astype(jnp.int32))


rebase_allocation = Deterministic(_rebase_allocation)
"""Every particle repeated `rebase_counts` times, in order of the particles."""
