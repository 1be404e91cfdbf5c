"""its_hub's particle filter over llama.cpp, in one process, on the same work.

Run by an interpreter with the peers, with a request of
:func:`tsi.experiments.benchmarks.filter_run.request` on standard input::

    python -m venv peers
    peers/bin/pip install --no-deps its-hub
    peers/bin/pip install llama-cpp-python numpy typing-extensions

llama-cpp-python caches the keys and values of one sequence, so that a call reads only
the tokens that follow its common prefix with the previous call. its_hub has no adapter
for it; the one here draws from the whole distribution, as the policy of the target
does. In its_hub a solution may have one step more than its ``max_steps``.
"""

import json
import math
import os
import sys
import time
from collections.abc import Generator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Model:
    """A llama.cpp model that writes steps, judges solutions and counts its tokens.

    Attributes:
        generated: tokens drawn, end tokens and delimiters included.
        judged: tokens evaluated to judge, of ``judge_texts`` tokens in the judged
            texts.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        import llama_cpp

        class Counting(llama_cpp.Llama):
            """Records drawn tokens and counts evaluated ones."""

            evaluated = 0
            drawn: tuple[int, ...] = ()

            def eval(self, tokens: Sequence[int]) -> None:
                self.evaluated += len(tokens)
                super().eval(tokens)

            def generate(self, *args: Any, **options: Any) -> Generator[int]:
                self.drawn = ()
                for token in super().generate(*args, **options):
                    self.drawn += (token,)
                    yield token

        self.request = request
        threads = request.get("threads") or os.cpu_count()
        self.version = llama_cpp.__version__
        self.logits_of = llama_cpp.llama_get_logits_ith
        self.llama = Counting(
            request["path"],
            n_ctx=request["max_tokens"] + 512,
            n_threads=threads,
            n_threads_batch=threads,
            seed=request.get("seed", 0),
            verbose=False,
        )
        self.generated = self.judged = self.judge_texts = 0

    def tokens(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def write(self, text: str, temperature: float) -> str:
        """The next step of a text, with its delimiter or end."""
        request = self.request
        reply = self.llama.create_completion(
            self.tokens(text),
            max_tokens=request["max_step_tokens"],
            temperature=temperature,
            stop=[request["delimiter"]],
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repeat_penalty=1.0,
        )
        tokens = self.llama.drawn
        self.generated += len(tokens)
        choice = reply["choices"][0]
        if tokens and tokens[-1] in request["eos_ids"]:
            return choice["text"] + request["end"]
        stopped = choice["finish_reason"] == "stop"
        return choice["text"] + (request["delimiter"] if stopped else "")

    def judge(self, text: str) -> float:
        """Probability of Yes, relative to Yes and No."""
        tokens = self.tokens(text + self.request["question"])
        before = self.llama.evaluated
        writing = self.llama.generate(tokens, temp=0.0)
        next(writing)
        writing.close()
        self.judged += self.llama.evaluated - before
        self.judge_texts += len(tokens)
        logits = self.logits_of(self.llama.ctx, -1)
        return sigmoid(logits[self.request["yes"]] - logits[self.request["no"]])


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) for any x."""
    return 0.5 * (1 + math.tanh(x / 2))


def run(request: dict[str, Any]) -> dict[str, Any]:
    """The filter on every problem, one after the other."""
    from its_hub.api import AbstractLanguageModel, AbstractProcessRewardModel
    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
    from its_hub.core.lms.step_generation import StepGeneration

    model = Model(request)

    class Writer(AbstractLanguageModel):
        async def agenerate(
            self, messages: Any, stop: Any = None, **options: Any
        ) -> list[dict[str, str]]:
            texts = [
                request["prompts"][turns[0].content]
                + "".join(turn.content for turn in turns[1:])
                for turns in messages
            ]
            steps = [model.write(text, options["temperature"]) for text in texts]
            return [{"role": "assistant", "content": step} for step in steps]

    class Judge(AbstractProcessRewardModel):
        def score(self, prompt: str, steps: list[str]) -> list[float]:
            return [model.judge(request["prompts"][prompt] + text) for text in steps]

        async def ascore(self, prompt: str, steps: list[str]) -> list[float]:
            return self.score(prompt, steps)

    steps = StepGeneration(
        max_steps=request["max_steps"] - 1,
        step_token=request["delimiter"],
        stop_token=request["end"],
        temperature=request["temperature"],
        include_stop_str_in_output=True,
    )
    lengths: list[int] = []
    start_time, cpu_start_time = time.perf_counter(), time.process_time()
    for prompt in request["prompts"]:
        result = ParticleFiltering(steps, Judge()).infer(
            Writer(), prompt, request["particles"], return_response_only=False
        )
        lengths += result.steps_used_lst
    return {
        "seconds": time.perf_counter() - start_time,
        "cpu_seconds": time.process_time() - cpu_start_time,
        "generated_tokens": model.generated,
        "reward_tokens": model.judged,
        "judge_texts_tokens": model.judge_texts,
        "mean_steps": sum(lengths) / len(lengths),
        "peak_bytes": peak_bytes(),
        "versions": {
            "its_hub": version("its_hub"),
            "llama_cpp_python": model.version,
        },
    }


def peak_bytes() -> int:
    """Peak memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
