"""The scaling experiment with a real language model and two rewards.

Claim under test: the ranking of methods seen with large models (Puri et al. 2025,
arXiv 2502.01618, figure 2) holds for SmolLM2-135M-Instruct on short sums. Nothing is
published for this model and task, so there is no expected number: the measured table
stands in the README, whatever it says. With 20 problems a standard error is about 10
points, and only large differences mean anything.

Rewards: ``judge``, the policy's own one-token judgement of each prefix, and
``equations``, an exact check of the equations that the text has stated.

Cost: at most 40 minutes on 2 cores, after a download of 93 MB.
Command: ``make curve-llm`` or ``python -m tsi.experiments.scaling.curve_llm``.
"""

import sys
from collections.abc import Iterator
from typing import Any

import tyro

from tsi.decoding.vocabularies import boundary_of
from tsi.engine.engine import Engine
from tsi.experiments.command import exit_code, resumable
from tsi.experiments.places import inside, place_of
from tsi.experiments.scaling.scale import checked_plan, run_plan
from tsi.experiments.scaling.write_report import write_report
from tsi.experiments.tasks import chain_sum
from tsi.experiments.tasks.equations import REWARDS, equation_log_odds
from tsi.experiments.worlds.embedded_world import all_devices
from tsi.experiments.worlds.language_policy import self_judge
from tsi.experiments.worlds.model_checks import load_model
from tsi.experiments.worlds.provenance import sha256_of, versions
from tsi.experiments.worlds.world import World
from tsi.models.decoder import LanguageModel
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.problem import Problem
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.reward import Reward
from tsi.rewards.text_reward import TextReward

POLICY = "smollm2-135m"
METHODS = ("self_consistency", "weighted_best_of_n", "particle_filter", "smc")
JUDGE_QUESTION = "Is every equation above right? Answer Yes or No."


def language_worlds(
    num_problems: int,
    *,
    max_rows: int,
    temperature: float,
    max_stored: int | None = None,
) -> Iterator[tuple[str, World]]:
    """The experiment's two worlds, by the name of their reward."""
    path = get(POLICY)
    policy = load_model(path, LanguageModel, "policy")
    tokenizer = load_tokenizer(path)
    vocab_size = policy.config.vocab_size
    boundary = boundary_of(tokenizer, vocab_size, b"\n", tokenizer.eos_ids)
    rewards: dict[str, tuple[Reward, dict[str, Any]]] = {
        "judge": (self_judge(tokenizer, JUDGE_QUESTION), {"question": JUDGE_QUESTION}),
        "equations": (TextReward(equation_log_odds, tokenizer.decode), dict(REWARDS)),
    }
    problems: list[Problem] = chain_sum.problems(num_problems, seed=0)
    for name, (reward, reward_settings) in rewards.items():
        target = ReasoningTarget(
            boundary,
            reward,
            max_step_tokens=chain_sum.MAX_STEP_TOKENS,
            max_tokens=chain_sum.MAX_TOKENS,
            max_steps=chain_sum.MAX_STEPS,
        )
        engine = Engine(
            target,
            policy,
            None,
            encode=chain_sum.encoder(tokenizer),
            decode=tokenizer.decode,
            temperature=temperature,
            max_rows=max_rows,
            max_stored=max_stored,
            mesh=all_devices(),
        )
        settings = {
            "task": "chain_sum",
            "problem_seed": 0,
            "policy": POLICY,
            "policy_sha256": sha256_of(path),
            "reward": name,
            "reward_settings": reward_settings,
            "temperature": temperature,
            "max_steps": target.max_steps,
            "max_step_tokens": target.max_step_tokens,
            "max_tokens": target.max_tokens,
            **versions(),
        }
        yield (
            name,
            World(
                engine,
                problems,
                chain_sum.extract,
                chain_sum.correct,
                target.max_steps,
                settings,
            ),
        )


@resumable()
def main(
    num_problems: int = 20,
    budgets: tuple[int, ...] = (1, 4, 16),
    seeds: int = 1,
    out: str = "results/llm",
    max_rows: int = 80,
    temperature: float = 0.8,
    methods: tuple[str, ...] = METHODS,
    rewards: tuple[str, ...] = ("judge", "equations"),
    max_stored: int = 800,
    progress: bool = True,
) -> None:
    """Run the experiment with each reward; resumes where it stopped.

    Args:
        num_problems: of chain_sum.
        budgets: rollouts N.
        seeds: how often each problem is run.
        out: folder, or an address that fsspec knows; each reward has one inside.
        max_rows: rows that write tokens together on a device.
        temperature: of the policy.
        methods: which samplers; "all" alone is every one.
        rewards: which of the two.
        max_stored: prefixes with caches that explorers keep at once; a thousand
            are 3 GB of keys and values.
        progress: show a bar with the time left.
    """
    plan = checked_plan(methods, budgets, seeds)
    place = place_of(out)
    worlds = language_worlds(
        num_problems,
        max_rows=max_rows,
        temperature=temperature,
        max_stored=max_stored,
    )
    for name, world in worlds:
        if name not in rewards:
            continue
        folder = inside(place, name)
        path = inside(folder, "rows.jsonl")
        rows = run_plan(plan, world, path, progress=progress)
        print(f"\nreward: {name}\n\n{write_report(plan, world, rows, folder)}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
