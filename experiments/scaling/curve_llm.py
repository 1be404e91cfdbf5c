"""The scaling experiment with a real language model.

Claim under test: the ranking of methods with large models (Puri et al. 2025, arXiv
2502.01618, figure 2) also holds for SmolLM2-135M-Instruct on short sums. Nothing is
published for this model and task, so there is no expected number; the measured tables
are in docs/results/language_model.md, whatever the outcome. With 20 problems a standard
error is about 10 points, so that only large differences are meaningful.

Rewards: ``equations``, an exact check of the equations in the text; ``judge``, the
policy's one-token judgement of each prefix; and ``self-certainty``, the policy's
confidence in its own tokens (arXiv 2502.18581). The first two are run by default.

Cost: about 12 minutes on 2 cores, after a download of 93 MB.
Command: ``make curve-llm`` or ``python -m tsi.experiments.scaling.curve_llm``.
"""

import sys
from collections.abc import Iterator
from typing import Any

import tyro

from tsi.experiments.command import exit_code, exit_resumably
from tsi.experiments.files.places import join_place, parse_place
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.reports.write_report import write_report
from tsi.experiments.scaling.scale import run_plan
from tsi.experiments.tasks.chain_sum import CHAIN_SUM, dataset_problems
from tsi.experiments.tasks.equations import REWARDS, equation_log_odds
from tsi.experiments.worlds.embedded_world import device_mesh
from tsi.experiments.worlds.world import PROBLEM_SEED, World, task_limits, task_world
from tsi.loading.named_reward import LoadedReward, load_reward
from tsi.loading.policy import load_policy
from tsi.rewards.text_reward import TextReward

POLICY = "smollm2-135m"
METHODS = ("self_consistency", "weighted_best_of_n", "particle_filter", "smc")
QUESTION = "Is every equation above right? Answer Yes or No."
"""The question to the policy about its own text."""
CONFIDENCE = "self-certainty"


def language_worlds(
    num_problems: int,
    *,
    max_rows: int,
    temperature: float,
    max_stored: int | None = None,
) -> Iterator[tuple[str, World]]:
    """The experiment's three worlds, by the name of their reward."""
    limits = task_limits(CHAIN_SUM)
    policy = load_policy(POLICY, temperature=temperature)
    problems = dataset_problems(num_problems, PROBLEM_SEED)
    judge = load_reward("judge", policy, limits, question=QUESTION)
    equations = TextReward(equation_log_odds, policy.tokenizer.decode)
    rewards: dict[str, tuple[LoadedReward, dict[str, Any]]] = {
        "equations": (LoadedReward(equations), dict(REWARDS)),
        "judge": (judge, {"question": QUESTION}),
        CONFIDENCE: (load_reward(CONFIDENCE, policy, limits), {}),
    }
    for name, (reward, reward_settings) in rewards.items():
        world = task_world(
            CHAIN_SUM,
            problems,
            policy,
            reward,
            limits,
            max_rows=max_rows,
            max_stored=max_stored,
            mesh=device_mesh(),
            settings={"reward": name, "reward_settings": reward_settings},
        )
        yield name, world


@exit_resumably()
def main(
    num_problems: int = 20,
    budgets: tuple[int, ...] = (1, 4, 16),
    seeds: int = 1,
    out: str = "results/llm",
    max_rows: int = 80,
    temperature: float = 0.8,
    methods: tuple[str, ...] = METHODS,
    rewards: tuple[str, ...] = ("equations", "judge"),
    max_stored: int = 800,
    progress: bool = True,
) -> None:
    """Run the experiment with each reward; can be resumed.

    Args:
        num_problems: number of problems of chain_sum.
        budgets: rollouts N.
        seeds: how many times each problem is run.
        out: folder, or an address that fsspec supports, with a subfolder per reward.
        max_rows: rows that write tokens together on a device.
        temperature: of the policy.
        methods: which to compare; standard: the nine methods of the published
            comparison; all: every method.
        rewards: which of equations, judge and self-certainty.
        max_stored: prefixes with caches that explorers keep at once; a thousand
            prefixes have 3 GB of keys and values.
        progress: show a progress bar with the time left.
    """
    plan = make_plan(methods, budgets, seeds)
    place = parse_place(out)
    worlds = language_worlds(
        num_problems,
        max_rows=max_rows,
        temperature=temperature,
        max_stored=max_stored,
    )
    for name, world in worlds:
        if name not in rewards:
            continue
        folder = join_place(place, name)
        path = join_place(folder, "rows.jsonl")
        rows = run_plan(plan, world, path, progress=progress)
        print(f"\nreward: {name}\n\n{write_report(plan, world, rows, folder)}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
