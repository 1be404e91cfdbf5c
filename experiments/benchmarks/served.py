"""Methods over a llama.cpp server, compared with its_hub over the same server.

The particle filter and the weighted best-of-N on word problems, with N = 4, 16, 64,
SmolLM2-135M, and two rewards: a Python function, which costs nothing, and the policy's
own judgement by one token, which the same server gives. Claim: at least twice its_hub's
generated tokens per second.

Measurements of both alternate, so that other load on the machine affects both. Tokens
are those of the server's own counters, and each measurement has a new server, whose
cache is empty. Seconds of the client are processor time; ``served_client`` measures
those without tracing and compilation. Command: ``make bench-served LLAMA_SERVER=path
PEERS=python``, where the server is llama.cpp's ``llama-server`` and the interpreter has
its_hub. Either is skipped with a message if it is absent.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro

from tsi.experiments.benchmarks.engine import describe_machine, run_process
from tsi.experiments.benchmarks.filter_run import QUESTION, Work, request
from tsi.experiments.benchmarks.questions import extract, problems
from tsi.experiments.benchmarks.served_table import table
from tsi.experiments.command import exit_code
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.worlds.provenance import commit
from tsi.models.files import write_text
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.reasoning.limits import SolutionLimits
from tsi.rewards.verifier import Verifier
from tsi.samplers.best_of_n import weighted_best_of_n
from tsi.samplers.particle_filter import particle_filter
from tsi.serving.connect import connect
from tsi.serving.engine import ServedEngine
from tsi.serving.judge_question import judge_question
from tsi.serving.llama_cpp import LlamaCpp
from tsi.serving.policy import ServedPolicy
from tsi.serving.scorer import HostScorer, Scorer, ServedScorer
from tsi.serving.served_judge import ServedJudge
from tsi.serving.step import Controls

HERE = Path(__file__).resolve().parent
DELIMITER = "\n\n"
NEVER = "\0"
"""A delimiter that no policy writes, for solutions of one step."""
METHODS = ("particle filter", "best of N")
REWARDS = ("function", "judge")
OWN = {"tsi": False, "tsi, one request": True}
"""This package, and whether the rows of a step share a request."""
COUNTERS = {
    "generated_tokens": "llamacpp:tokens_predicted_total",
    "prompt_tokens": "llamacpp:prompt_tokens_total",
    "cached_tokens": "llamacpp:prompt_tokens_cached_total",
    "decodes": "llamacpp:n_decode_total",
}


class Options(NamedTuple):
    """What to measure.

    Attributes:
        server: path of llama-server; empty skips everything.
        peers: interpreter with its_hub; empty skips it.
        model: a name from `tsi models`.
        methods: of METHODS.
        rewards: of REWARDS.
        particles: budgets N.
        problems: at most 8.
        repeats: of each measurement.
        max_steps, max_step_tokens: of the particle filter.
        max_tokens: of a solution.
        temperature: of the policy.
        slots: sequences that the server processes in parallel.
        threads: of the server.
        at_once: whether its_hub gets all problems together; else one after the other.
    """

    server: str = os.environ.get("LLAMA_SERVER", "")
    peers: str = os.environ.get("PEERS", "")
    model: str = "smollm2-135m"
    methods: tuple[str, ...] = METHODS
    rewards: tuple[str, ...] = REWARDS
    particles: tuple[int, ...] = (4, 16, 64)
    problems: int = 8
    repeats: int = 2
    max_steps: int = 6
    max_step_tokens: int = 60
    max_tokens: int = 240
    temperature: float = 0.8
    slots: int = 64
    threads: int = os.cpu_count() or 1
    at_once: bool = False


def log_odds(question: str, text: str, ended: bool) -> float:
    """A reward that costs nothing: whether the solution has a digit."""
    return 0.85 if re.search(r"\d", text) else -0.85


def free_port() -> int:
    """A port that no process uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def server_of(options: Options, port: int) -> Iterator[str]:
    """Start a server with an empty cache; its address."""
    folder = str(Path(options.server).resolve().parent)
    paths = [folder, os.environ.get("LD_LIBRARY_PATH", "")]
    # Prompt and solution of every slot.
    context = options.slots * (512 + options.max_tokens + options.max_step_tokens)
    process = subprocess.Popen(
        [
            options.server,
            *("--model", str(get(options.model)), "--port", str(port)),
            *("--ctx-size", str(context), "--parallel", str(options.slots)),
            *("--threads", str(options.threads), "--metrics", "--no-webui"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, paths))},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Wait until a server has loaded its model."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        time.sleep(0.5)
    raise SystemExit("llama-server did not start; run it in a shell to see why.")


def counters(url: str) -> dict[str, float]:
    """The server's own counters."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=60).read().decode()
    values = dict(re.findall(r"^(llamacpp:\w+) (\S+)$", text, re.MULTILINE))
    return {name: float(values.get(key, 0)) for name, key in COUNTERS.items()}


def scorer_of(policy: ServedPolicy, reward: str) -> Scorer | ServedScorer:
    """This package's reward of a name."""
    if reward == "judge":
        spelling = policy.spelling
        question = judge_question(spelling, QUESTION)
        return ServedJudge(policy, question, spelling.encode_prompt)
    return HostScorer(Verifier(log_odds, policy.spelling.decode))


def peer_judge(tokenizer: Tokenizer, options: Options) -> dict[str, Any]:
    """The request of its_hub for the same question over the same endpoint."""
    work = request(Work(problems=options.problems), tokenizer, "")
    call = LlamaCpp().choice_call([], (work["yes"], work["no"]), None)
    assert call is not None, "This server takes token ids."
    names = ("prompts", "question", "yes", "no")
    return {name: work[name] for name in names} | {
        "path": call.path,
        "body": call.body,
    }


def measure_tsi(
    policy: ServedPolicy, options: Options, method: str, particles: int, reward: str
) -> dict[str, Any]:
    """This package on all problems."""
    filtering = method == METHODS[0]
    max_tokens = options.max_tokens
    limits = (
        SolutionLimits(options.max_steps, options.max_step_tokens, max_tokens)
        if filtering
        else SolutionLimits(1, max_tokens, max_tokens)
    )
    engine = ServedEngine(
        policy,
        scorer_of(policy, reward),
        limits,
        delimiters=(DELIMITER if filtering else NEVER,),
        controls=Controls(temperature=options.temperature),
    )
    sampler = particle_filter() if filtering else weighted_best_of_n()
    before, start_time = policy.client.traffic, time.perf_counter()
    thread_start_time = time.thread_time()
    results = engine.run(
        sampler,
        jax.random.key(particles),
        problems(options.problems),
        particles,
        extract=extract,
    )
    after = policy.client.traffic
    report = engine.report
    assert report is not None
    return {
        "seconds": time.perf_counter() - start_time,
        "client_seconds": after.seconds - before.seconds,
        "sampler_seconds": time.thread_time() - thread_start_time,
        "requests": after.requests - before.requests,
        "turns": sum(len(result.steps.ess) for result in results),
        "reward_tokens": sum(result.ledger.reward_tokens for result in results),
    }


def measure_peer(
    url: str,
    tokenizer: Tokenizer,
    options: Options,
    method: str,
    particles: int,
    reward: str,
) -> dict[str, Any]:
    """its_hub on all problems."""
    work = {
        "url": url,
        "method": method,
        "particles": particles,
        "prompts": [problem.prompt for problem in problems(options.problems)],
        "judge": peer_judge(tokenizer, options) if reward == "judge" else None,
        "delimiter": DELIMITER,
        "max_steps": options.max_steps,
        "max_step_tokens": options.max_step_tokens,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "at_once": options.at_once,
    }
    command = [options.peers, HERE / "peer_its_hub_served.py"]
    return run_process(command, json.dumps(work), dict(os.environ))


def main(
    options: tyro.conf.OmitArgPrefixes[Options] = Options(),  # noqa: B008
    out: Path = Path("docs/results/served"),
) -> int:
    """Measure, and write rows.jsonl, machine.json and table.md.

    Args:
        options: what to measure.
        out: folder.
    """
    if not options.server:
        print("Skipped: give the path of llama.cpp's llama-server (LLAMA_SERVER).")
        return 0
    names = [*OWN, "its_hub"] if options.peers else [*OWN]
    if not options.peers:
        print("its_hub is skipped: give an interpreter that has it (PEERS).")
    rows: list[dict[str, Any]] = []
    tokenizer = load_tokenizer(get(options.model))
    port = free_port()
    with server_of(options, port) as url:
        policy = connect(url, tokenizer=tokenizer)
        print(policy.abilities)
    with AppendOnlyFile(out / "rows.jsonl") as file, policy.client:
        cells = itertools.product(
            options.rewards,
            options.particles,
            options.methods,
            range(options.repeats),
            names,
        )
        for reward, particles, method, repeat, by in cells:
            load = os.getloadavg()[0]
            with server_of(options, port) as url:
                before = counters(url)
                numbers = (
                    measure_tsi(
                        dataclasses.replace(policy, together=OWN[by]),
                        options,
                        method,
                        particles,
                        reward,
                    )
                    if by in OWN
                    else measure_peer(
                        url, tokenizer, options, method, particles, reward
                    )
                )
                after = counters(url)
            row = {
                "by": by,
                "method": method,
                "reward": reward,
                "particles": particles,
                "repeat": repeat,
                "load": load,
                "commit": commit(),
                **numbers,
                **{name: after[name] - before[name] for name in COUNTERS},
                "work": options._replace(server="", peers="")._asdict(),
            }
            rows.append(row)
            file.append(json.dumps(row).encode() + b"\n")
            print(json.dumps(row), flush=True)
            write_text(out / "table.md", table(rows) + "\n")
    write_text(out / "machine.json", json.dumps(describe_machine(), indent=1) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
