"""A twist on the policy's hidden states: a value head estimates the future reward.

log psi is the output of a :class:`tsi.models.heads.ValueHead` on the hidden state at
the newest token of an unfinished prefix. :data:`VALUE_TWIST` is what
:func:`tsi.samplers.contrastive_twist.fit_twist` fits, with the head as theta, on a
:class:`tsi.reasoning.target.ReasoningTarget` of one problem; :class:`TwistedVerifier`
is the same twist as a reward, for runs in the engine.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from tsi.models.heads import ValueHead
from tsi.rewards.policy_value import PolicyValue
from tsi.rewards.reward import (
    Models,
    PolicyContext,
    Reading,
    State,
    Step,
    newest_hidden,
)
from tsi.rewards.text_reward import TextReward
from tsi.twists.learned import LearnedTwist


def hidden_states(t: Any, particles: Any, params: Any) -> Float[Array, "R D"]:
    """The policy's hidden state at each row's newest token.

    Args:
        t: the step's index, unused.
        particles: R rows, a :class:`tsi.reasoning.particles.Particles`.
        params: the target's :class:`tsi.reasoning.particles.ReasoningParams`.
    """
    prompts = params.prompts.lengths
    before = jnp.repeat(prompts, particles.lengths.shape[0] // prompts.shape[0]) - 1
    context = PolicyContext(
        (particles.prompt, particles.suffix.segment),
        particles.pending,
        before + particles.lengths,
    )
    return newest_hidden(params.policy, context).astype(jnp.float32)


def _log_psi(
    head: ValueHead, t: Any, hidden: Float[Array, "R D"]
) -> Float[Array, " R"]:
    return head.log_odds(hidden)


VALUE_TWIST = LearnedTwist(_log_psi, hidden_states)


@dataclasses.dataclass(frozen=True)
class TwistedVerifier(PolicyValue):
    """A verifier's log-odds of ended solutions, and a twist of unfinished prefixes.

    ``params.reward_model`` is the :class:`tsi.models.heads.ValueHead`. With telescoping
    potentials (``twisted_smc``) the head affects only the variance, if solutions that
    are cut at a limit have weight zero (``log_truncation`` = -inf).

    In the engine the verifier is called from within a compiled program, unlike other
    rewards on the host: an exception that it raises ends the run.

    Attributes:
        verifier: a function of the text.
    """

    verifier: TextReward

    def read(self, state: State, step: Step, params: Models) -> tuple[State, Reading]:
        """See :class:`tsi.rewards.reward.Reward`."""
        state, reading = super().read(state, step, params)
        _, verdict = self.verifier.read((), step, params)
        log_odds = jnp.where(step.stopped, verdict.log_odds, reading.log_odds)
        return state, reading._replace(log_odds=log_odds)
