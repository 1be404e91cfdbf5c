"""Logistic regression by Newton's method (iteratively reweighted least squares).

Minimises, over weights w of standardised features z and an intercept b,

    sum_i log(1 + exp(-s_i)) (for soft labels y_i the cross-entropy)  +  ridge/2 |w|²

which is strictly convex for a positive ridge, so that the minimum is unique and no
learning rate is needed. All computations are in float64; exact Newton steps are
practical for up to a few thousand features.
"""

import numpy as np
from jaxtyping import Float

MAX_STEPS = 100


def log_loss(
    log_odds: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]
) -> float:
    """Mean cross-entropy of labels in [0, 1], in nats."""
    return float(np.mean(np.logaddexp(0.0, log_odds) - labels * log_odds))


def fit_logistic(
    features: Float[np.ndarray, "n D"], labels: Float[np.ndarray, " n"], ridge: float
) -> tuple[Float[np.ndarray, " D"], float]:
    """Weights and intercept of the log-odds, for features that are not standardised.

    Args:
        features: one row per example.
        labels: in [0, 1].
        ridge: weight of |w|², for features of unit variance; above 0. The intercept is
            not penalised.
    """
    mean, deviation = features.mean(0), features.std(0)
    # A constant feature keeps the weight 0.
    scale = np.where(deviation > 1e-9 * (1.0 + np.abs(mean)), deviation, np.inf)
    ones = np.ones((len(features), 1))
    design = np.concatenate([(features - mean) / scale, ones], axis=1)
    penalty = np.full(design.shape[1], float(ridge))
    penalty[-1] = 0.0
    weights = np.zeros(design.shape[1])

    def objective(w: np.ndarray) -> float:
        loss = log_loss(design @ w, labels) * len(labels)
        return loss + float(penalty @ w**2) / 2

    value = objective(weights)
    for _ in range(MAX_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -500.0, 500.0)))
        gradient = design.T @ (p - labels) + penalty * weights
        # If all labels agree, the curvature in the intercept goes to zero.
        curvature = (design * (p * (1.0 - p))[:, None]).T @ design
        curvature += np.diag(penalty + 1e-12)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while objective(weights - size * step) > value and size > 1e-6:
            size /= 2
        weights = weights - size * step
        value = objective(weights)
        # Convergence is quadratic: after a small step, another changes nothing.
        if gradient @ step < 1e-10 * len(labels):
            break
    slopes = weights[:-1] / scale
    return slopes, float(weights[-1] - slopes @ mean)
