"""One run of the paper's particle filter on a language model, in its own process.

``python -m tsi.experiments.benchmarks.filter_run --particles 16`` prints one line of
JSON. Potentials are products of odds, and the policy judges its own prefixes by one
token. Seconds are those of :meth:`tsi.engine.engine.Engine.run`, with compilation and
without loading; JAX_COMPILATION_CACHE_DIR is the folder of compiled programs. Every run
uses the same key, so that repetitions do the same work.
"""

import json
import sys
import time
from typing import Any, NamedTuple

import jax
import tyro

from tsi.engine.assembly import reasoning_engine
from tsi.experiments.benchmarks.loading import peak_bytes
from tsi.experiments.benchmarks.questions import extract, problems
from tsi.experiments.command import exit_code
from tsi.loading.named_reward import load_reward
from tsi.loading.policy import load_policy
from tsi.loading.self_judge import self_judge
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.reasoning.limits import SolutionLimits
from tsi.results.result import Result
from tsi.samplers.particle_filter import particle_filter

DELIMITER = "\n\n"
QUESTION = "Is the solution above right so far? Answer Yes or No."


class Work(NamedTuple):
    """What is run; all compared programs have the same limits."""

    model: str = "smollm2-135m"
    particles: int = 4
    problems: int = 8
    max_steps: int = 12
    max_step_tokens: int = 100
    max_tokens: int = 1200
    temperature: float = 0.8
    max_rows: int = 64


def run(work: Work) -> dict[str, Any]:
    """Load the model, run the filter and return its costs."""
    policy = load_policy(work.model, temperature=work.temperature)
    limits = SolutionLimits(work.max_steps, work.max_step_tokens, work.max_tokens)
    engine = reasoning_engine(
        policy,
        load_reward("judge", policy, limits, question=QUESTION),
        limits,
        delimiters=(DELIMITER,),
        max_rows=work.max_rows,
    )
    start_time, cpu_start_time = time.perf_counter(), time.process_time()
    results = engine.run(
        particle_filter(),
        jax.random.key(0),
        problems(work.problems),
        work.particles,
        extract=extract,
    )
    seconds, report = time.perf_counter() - start_time, engine.report
    assert report is not None
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_start_time,
        **costs(results),
        "utilisation": report.utilisation,
        "programs": report.programs,
        "compile_seconds": report.compile_seconds,
        "peak_bytes": peak_bytes(),
    }


def costs(results: list[Result]) -> dict[str, Any]:
    """Tokens of all problems, and the mean number of steps of solutions."""
    steps = [
        len(steps) for result in results for steps in result.particles.step_texts or ()
    ]
    return {
        "generated_tokens": sum(r.ledger.generated_tokens for r in results),
        "reward_tokens": sum(r.ledger.reward_tokens for r in results),
        "mean_steps": sum(steps) / len(steps) if steps else None,
        "truncated": sum(r.diagnostics.num_truncated for r in results),
    }


def request(work: Work, tokenizer: Tokenizer, path: str) -> dict[str, Any]:
    """The same work for programs without this package, in JSON types."""
    judge, example = self_judge(tokenizer, QUESTION), "7 plus 8 is 15"
    turns = [
        {"role": "user", "content": "7+8"},
        {"role": "assistant", "content": example},
        {"role": "user", "content": QUESTION},
    ]
    text = tokenizer.render(turns, add_generation_prompt=True)
    prompts = [problem.prompt for problem in problems(work.problems)]
    return {
        **work._asdict(),
        "path": path,
        "prompts": {
            prompt: tokenizer.render(
                [{"role": "user", "content": prompt}], add_generation_prompt=True
            )
            for prompt in prompts
        },
        "delimiter": DELIMITER,
        "end": tokenizer.meaning(tokenizer.eos_ids[0]),
        "eos_ids": list(tokenizer.eos_ids),
        "question": text.rpartition(example)[2],
        "yes": judge.yes,
        "no": judge.no,
    }


def main(work: tyro.conf.OmitArgPrefixes[Work] = Work()) -> None:  # noqa: B008
    """Run the filter once and print its costs.

    Args:
        work: model, particles and limits.
    """
    print(json.dumps(run(work)))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
