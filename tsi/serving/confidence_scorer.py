"""The policy's mean log-probability as its reward, as reported by the server."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tsi.errors import CapabilityError, ServerError
from tsi.rewards.policy_confidence import PolicyConfidence
from tsi.serving.abilities import Abilities
from tsi.serving.scorer import Score, ScoredRow
from tsi.serving.step import Controls


def check_known(name: str, abilities: Abilities, controls: Controls) -> None:
    """Refuse controls under which a server's log p is not the model's own.

    Args:
        name: of the reward.
        abilities: of the server.
        controls: of a run.

    Raises:
        CapabilityError: see above; or the server gives no log p.
    """
    # Raises an error with the reason if the server gives none.
    _ = abilities.store(Controls()).log_prob
    if abilities.log_probs == "processed" and not controls.is_plain:
        raise CapabilityError(
            f"The reward {name} is log p of the model at temperature 1, and the "
            "server's numbers are of the tokens as they are drawn, with another "
            "temperature, a truncation or a penalty. Leave these out, or use another "
            "reward."
        )


class ConfidenceScorer:
    """A :class:`tsi.serving.scorer.Scorer`: a function of log p of the solution.

    Args:
        reward: a reward with the measure "log-prob" over all tokens; its log-odds are
            computed as for a policy on this machine.
        name: for rows of results.

    Raises:
        CapabilityError: the reward needs more than log p of the whole solution.
    """

    needs_log_probs = True

    def __init__(self, reward: PolicyConfidence, name: str) -> None:
        if reward.confidence.measure != "log-prob" or reward.window != "all":
            raise CapabilityError(
                f"The reward {name} reads the distribution at each token, and over a "
                "server only log p of a whole solution is known. Use mean-log-prob "
                "without a window."
            )
        self.reward, self.name = reward, name

    def prepare(self, questions: Sequence[str]) -> None:
        """See :class:`tsi.serving.scorer.Scorer`."""

    def score(self, rows: Sequence[ScoredRow]) -> list[Score | Exception]:
        """See :class:`tsi.serving.scorer.Scorer`."""
        means = [row.log_prob / max(len(row.tokens), 1) for row in rows]
        log_odds = np.asarray(self.reward.log_odds(jnp.asarray(means, jnp.float32)))
        unknown = ServerError(
            "The server gave no log-probability for a token of a solution, so "
            f"{self.name} is not known."
        )
        return [
            unknown if math.isnan(row.log_prob) else Score(float(value))
            for row, value in zip(rows, log_odds, strict=True)
        ]
