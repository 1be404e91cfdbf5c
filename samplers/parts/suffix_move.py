r"""The Metropolis-Hastings move that proposes a new end of a solution.

A move cuts a path x of L(x) steps at a uniform step c in {0, ..., L(x) - 1}, draws a
new end from the proposal q, and accepts the result x' with probability min(1, A),

    A = pi(x') q(x_{>c} | x_{<=c}) L(x) / (pi(x) q(x'_{>c} | x_{<=c}) L(x')),

which leaves pi(x) \propto p(x) exp(lambda s(x)) invariant. L(x) / L(x') is the ratio of
the probabilities of the cut in the two directions; without it, short paths would be
favoured.

References:
    [1] Faria et al. 2024, QUEST, arXiv 2406.00049.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tsi.samplers.parts.path_record import PathRecord, log_ratio


def draw_cut(key: Key[Array, ""], lengths: Int[Array, "C"]) -> Int[Array, "C"]:
    """Draw the number of steps that each path keeps, uniform on 0, ..., L - 1.

    Args:
        key: a typed key.
        lengths: L, positive, [C].
    """
    uniform = jax.random.uniform(key, lengths.shape)
    cut = jnp.floor(uniform * lengths).astype(jnp.int32)
    # In float32 a uniform number just below one, times L, may round to L.
    return jnp.minimum(cut, lengths - 1)


def truncate(record: PathRecord, cut: Int[Array, "C"]) -> PathRecord:
    """Cut the record of each path to its first `cut` steps.

    Args:
        record: of C paths with at least as many steps.
        cut: [C].
    """
    is_kept = jnp.arange(record.log_potentials.shape[-1]) < cut[:, None]
    return PathRecord(
        cut,
        jnp.where(is_kept, record.log_potentials, 0.0),
        jnp.where(is_kept, record.log_corrections, 0.0),
        jnp.where(is_kept, record.log_probs, 0.0),
    )


def log_acceptance(
    new: PathRecord,
    old: PathRecord,
    path_log_weight: Callable[..., Array],
    cut: Int[Array, "C"],
    exponent: Float[Array, ""] | float,
) -> Float[Array, "C"]:
    """log A for the target p(x) exp(lambda s(x)).

    Args:
        new, old: complete paths that share their first `cut` steps.
        path_log_weight: s.
        cut: [C].
        exponent: lambda, positive.

    Returns:
        [C]; +inf if the old path has density zero.
    """
    ratio = log_ratio(new, old, path_log_weight, 1.0, cut, exponent)
    return ratio + jnp.log(old.length) - jnp.log(new.length)
