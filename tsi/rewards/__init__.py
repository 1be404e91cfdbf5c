"""Rewards: the scores of prefixes, and the formats of published reward models."""

from tsi.decoding.token_confidence import TokenConfidence
from tsi.rewards.aggregation import AGGREGATIONS, Aggregated
from tsi.rewards.formats import FORMATS, Format
from tsi.rewards.formatted import FormattedReward
from tsi.rewards.host_reward import HostReward, Prefix
from tsi.rewards.likelihood_ratio import LikelihoodRatio
from tsi.rewards.policy_confidence import PolicyConfidence
from tsi.rewards.policy_value import PolicyValue
from tsi.rewards.process_reward import ProcessReward
from tsi.rewards.reward import NoReward, Prompts, Reading, Reward, Stateless, Step
from tsi.rewards.self_judge import SelfJudge
from tsi.rewards.text_reward import TextReward
from tsi.rewards.verifier import Verifier

__all__ = [
    "AGGREGATIONS",
    "FORMATS",
    "Aggregated",
    "Format",
    "FormattedReward",
    "HostReward",
    "LikelihoodRatio",
    "NoReward",
    "PolicyConfidence",
    "PolicyValue",
    "Prefix",
    "ProcessReward",
    "Prompts",
    "Reading",
    "Reward",
    "SelfJudge",
    "Stateless",
    "Step",
    "TextReward",
    "TokenConfidence",
    "Verifier",
]
