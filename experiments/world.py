"""A task with its models, ready to run: what `tsi scale` and `tsi solve` start from."""

import hashlib
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from tsi.boundary import step_boundary
from tsi.engine import Engine
from tsi.errors import ConfigurationError
from tsi.experiments.scale import World
from tsi.experiments.tasks import get_task
from tsi.models.catalogue import resolve
from tsi.models.checkpoint import load
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.tokenizer import Tokenizer, load_tokenizer
from tsi.problem import Problem
from tsi.reasoning import ReasoningTarget
from tsi.rewards import ProcessReward

PROBLEM_SEED = 0

T = TypeVar("T")


def embedded_world(
    task_name: str,
    problems: int | Sequence[Problem],
    *,
    policy: str | None = None,
    reward: str | None = None,
    temperature: float = 1.0,
    max_rows: int = 2048,
    max_stored: int | None = None,
) -> World:
    """A generated task with the tiny models that ship for it, or with others.

    Args:
        task_name: of a task in `experiments/tasks`.
        problems: how many held-out problems, or the problems themselves.
        policy: name or path of the policy; the task's own by default.
        reward: name or path of the process reward model; the task's own by default.
        temperature: of the policy.
        max_rows: particles of one batch over all its problems.
        max_stored: prefixes that explorers keep for a batch, by default 16 times that.

    Raises:
        UnknownNameError: there is no such task or model.
        CheckpointError: a model cannot be read.
        ConfigurationError: a model is of the wrong kind, or the reward model reads
            other tokens than the policy writes.
    """
    task = get_task(task_name)
    policy, reward = policy or f"{task_name}-policy", reward or f"{task_name}-reward"
    paths = {"policy": resolve(policy), "reward": resolve(reward)}
    policy_model = load_model(paths["policy"], LanguageModel, "policy")
    reward_model = load_model(paths["reward"], RewardModel, "reward")
    tokenizer = load_tokenizer(paths["policy"])
    check_same_tokens(tokenizer, load_tokenizer(paths["reward"]), policy, reward)
    token_bytes = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    target = ReasoningTarget(
        step_boundary(token_bytes, task.delimiter.encode(), tokenizer.eos_ids),
        ProcessReward(),
        max_step_tokens=task.max_step_tokens,
        max_tokens=task.max_steps * task.max_step_tokens,
        max_steps=task.max_steps,
    )
    engine = Engine(
        target,
        policy_model,
        reward_model,
        encode=tokenizer.encode_prompt,
        decode=tokenizer.decode,
        temperature=temperature,
        max_rows=max_rows,
        max_stored=max_stored,
        mesh=all_devices(),
    )
    if isinstance(problems, int):
        problems = task.problems("test", problems, PROBLEM_SEED)
    settings = {
        "task": task_name,
        "problem_seed": PROBLEM_SEED,
        "policy": policy,
        "policy_sha256": sha256_of(paths["policy"]),
        "reward": reward,
        "reward_sha256": sha256_of(paths["reward"]),
        "temperature": temperature,
        "max_steps": target.max_steps,
        "max_step_tokens": target.max_step_tokens,
        "max_tokens": target.max_tokens,
        **versions(),
    }
    return World(
        engine, list(problems), task.extract, task.correct, task.max_steps, settings
    )


def rows_of_a_batch() -> int:
    """How many particles a tiny model should have in a batch on this platform.

    On a CPU few enough that their keys and values stay in its caches: on two cores 128
    rows take a seventh less time than 2,048. Accelerators want to be filled.
    """
    return 128 if jax.default_backend() == "cpu" else 4096


def stored_in_a_batch() -> int:
    """How many prefixes of a tiny model explorers may keep, at about 0.1 MB each."""
    return 16_384 if jax.default_backend() == "cpu" else 65_536


def all_devices() -> Mesh | None:
    """A mesh of every device along its ``data`` axis; None where there is one."""
    devices = jax.devices()
    return Mesh(np.array(devices), ("data",)) if len(devices) > 1 else None


def check_same_tokens(
    policy: Tokenizer, reward: Tokenizer, policy_name: str, reward_name: str
) -> None:
    """Refuse a reward model that would take the policy's ids for other texts.

    Raises:
        ConfigurationError: an id stands for different bytes in the two tokenizers.
    """
    ids = range(max(policy.vocab_size, reward.vocab_size))
    if policy.vocab_size != reward.vocab_size or any(
        policy.token_bytes(i) != reward.token_bytes(i) for i in ids
    ):
        raise ConfigurationError(
            f"{reward_name} has another tokenizer than {policy_name}, whose token ids "
            "it is to read; choose models of one tokenizer."
        )


def load_model(path: Path, kind: type[T], role: str) -> T:
    """The model in a folder or file, which must be of a kind.

    Raises:
        CheckpointError: it cannot be read.
        ConfigurationError: it is of another kind.
    """
    model, _ = load(path)
    if not isinstance(model, kind):
        raise ConfigurationError(
            f"{path} is a {type(model).__name__}, and the {role} must be a "
            f"{kind.__name__}; name another model."
        )
    return model


def versions() -> dict[str, Any]:
    """What software made a row."""
    return {
        "tsi": metadata.version("tsi"),
        "commit": commit(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }


def commit() -> str | None:
    """Commit of the checkout that the package lies in, with "+" if files differ."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", "..")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def sha256_of(path: Path) -> str:
    """Digest of a model's file, or of all files of its folder with their names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*"))
    for file in files:
        if file.is_file():
            if path.is_dir():
                digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as content:
                while chunk := content.read(2**20):
                    digest.update(chunk)
    return digest.hexdigest()
