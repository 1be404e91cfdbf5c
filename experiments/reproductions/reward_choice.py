"""The reward model matters more than the method.

Source: Puri et al. 2025, arXiv 2502.01618, figure 4: particle filter with
Llama-3.2-1B-Instruct on 100 problems of MATH500, at N = 32: Qwen2.5-Math-PRM-7B 61,
EurusPRM-Stage2 57, RLHFlow-Deepseek-8B 42 percent.
Small: the particle filter with the task's reward model, with an exact check of each
prefix, and without a reward.
Cost: 4 reward models x 500 problems x 255 rollouts; small: 2 minutes of one core.
Command: tsi reproduce reward_choice [--small]
"""

from tsi.experiments.reproductions.published_models import (
    PRM,
    embedded_experiment,
    published_experiment,
)

REWARDS = {
    "qwen-prm": PRM,
    "math-shepherd": "math-shepherd:peiyi9979/math-shepherd-mistral-7b-prm",
    "rlhflow": "rlhflow:RLHFlow/Llama3.1-8B-PRM-Deepseek-Data",
    "skywork": "skywork:Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B",
}
METHODS = ("particle_filter",)
FULL = [
    published_experiment(name, reward=reward, aggregation="last", methods=METHODS)
    for name, reward in REWARDS.items()
]
SMALL = [
    embedded_experiment(name, reward=reward, methods=METHODS)
    for name, reward in {
        "trained": "countdown-reward",
        "exact": "verifier",
        "none": "none",
    }.items()
]
