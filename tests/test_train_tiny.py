"""Training resumes exactly, and step labels are what enumeration says they are."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tsi.errors import CheckpointError
from tsi.experiments.tasks import get_task
from tsi.experiments.training.fit import Schedule, fit
from tsi.experiments.training.step_labels import (
    LabelledSteps,
    label_steps,
    solving_target,
)
from tsi.experiments.training.train_policy import (
    draw_solutions,
    max_length,
    solution_loss,
    task_tokenizer,
    tiny_config,
)
from tsi.experiments.training.train_reward import (
    Marks,
    auc,
    corrupt,
    draw_labels,
    extend_model,
    freeze,
    judge,
    mark_likely_tokens,
)
from tsi.models.decoder import LanguageModel
from tsi.models.loading.catalogue import resolve
from tsi.models.loading.checkpoint import load
from tsi.models.loading.load_tokenizer import load_tokenizer

SMALL = {"width": 16, "hidden": 16, "num_layers": 1}
SCHEDULE = Schedule(steps=8, peak=1e-2, batch=4, warmup=2, checkpoint_every=2)


def small(task_name="chain", seed=0):
    task = get_task(task_name)
    tokenizer = task_tokenizer(task)
    config = tiny_config(task, tokenizer, **SMALL)
    return task, tokenizer, LanguageModel(config, rngs=nnx.Rngs(seed))


def train(folder, until=None):
    task, tokenizer, model = small()
    return fit(
        model,
        solution_loss,
        lambda step: draw_solutions(task, tokenizer, 4, 0, step),
        SCHEDULE,
        folder,
        until=until,
    )


def weights(model):
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model))]


def same(one, other):
    return all(
        np.array_equal(a, b) for a, b in zip(weights(one), weights(other), strict=True)
    )


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from tests.test_train_tiny import *

    def after_step(done):
        if done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    task, tokenizer, model = small()
    fit(model, solution_loss, lambda step: draw_solutions(task, tokenizer, 4, 0, step),
        SCHEDULE, Path(sys.argv[1]), after_step=after_step)
    """
)


@pytest.mark.long
def test_a_killed_and_resumed_run_ends_with_the_undisturbed_weights(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed"), root],
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert (tmp_path / "killed" / "4").is_dir()
    assert not (tmp_path / "killed" / "8").exists()
    undisturbed = train(tmp_path / "whole")
    assert same(train(tmp_path / "killed"), undisturbed)
    # The data's position matters: the same number of steps elsewhere differs.
    assert not same(train(tmp_path / "short", until=6), undisturbed)


def test_a_finished_schedule_trains_no_more_and_an_earlier_end_is_refused(tmp_path):
    first = train(tmp_path)
    assert same(train(tmp_path), first)
    with pytest.raises(CheckpointError, match="beyond the requested 4"):
        train(tmp_path, until=4)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tmp_path)
    task, tokenizer, _ = small()
    wider = LanguageModel(
        tiny_config(task, tokenizer, width=32, hidden=16, num_layers=1),
        rngs=nnx.Rngs(0),
    )
    with pytest.raises(CheckpointError, match="does not fit"):
        fit(wider, solution_loss, lambda step: None, SCHEDULE, tmp_path)


@pytest.mark.parametrize("name", ["chain", "countdown"])
def test_only_the_solution_and_its_end_are_learned(name):
    task = get_task(name)
    tokenizer = task_tokenizer(task)
    tokens, learned = draw_solutions(task, tokenizer, 20, 0, 3)
    for row, mask in zip(tokens, learned, strict=True):
        text = tokenizer.decode(row[~mask].tolist())
        problem = task.problem(text)
        assert task.verify(problem, tokenizer.decode(row[mask].tolist()))
        assert row[mask][-1] == tokenizer.eos_ids[0]
    again, _ = draw_solutions(task, tokenizer, 20, 0, 3)
    assert np.array_equal(tokens, again)
    assert not np.array_equal(tokens, draw_solutions(task, tokenizer, 20, 0, 4)[0])


def toy_task():
    """Solutions of up to two steps of up to two tokens over 0 and 1."""
    task = get_task("chain")
    return dataclasses.replace(
        task,
        name="toy",
        alphabet="01:\n",
        max_prompt_tokens=2,
        max_steps=2,
        max_step_tokens=2,
        extract=lambda text: text.replace("\n", ""),
        is_correct=lambda problem, answer: answer is not None and "1" in answer,
        is_on_track=lambda problem, prefix: True,
    )


def chance_of_a_right_end(model, task, tokenizer, prompt, prefix):
    """Enumerate everything the policy can write after a prefix."""
    width = max_length(task) + task.max_steps * task.max_step_tokens
    start = tokenizer.encode_prompt(prompt + prefix)
    forward = jax.jit(lambda model, tokens: jax.nn.softmax(model(tokens), -1))
    delimiter = tokenizer.encode(task.delimiter)[0]
    eos = tokenizer.eos_ids[0]

    def total(written, step, offset):
        if step == task.max_steps:
            return 0.0  # truncated
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(start) + len(written)] = [*start, *written]
        chances = np.asarray(forward(model, jnp.asarray(tokens)))[
            0, len(start) + len(written) - 1
        ]
        value = 0.0
        for token, chance in enumerate(chances):
            if token == eos:
                text = prefix + tokenizer.decode(list(written))
                value += chance * task.is_correct(None, task.extract(text))
            elif token == delimiter or offset + 1 == task.max_step_tokens:
                value += chance * total((*written, token), step + 1, 0)
            else:
                value += chance * total((*written, token), step, offset + 1)
        return value

    return total((), 0, 0)


@pytest.mark.long
def test_step_labels_are_the_chances_that_enumeration_gives():
    task = toy_task()
    tokenizer = task_tokenizer(task)
    model = LanguageModel(tiny_config(task, tokenizer, **SMALL), rngs=nnx.Rngs(3))
    problems = [get_task("chain").problem("1+2+3+4")._replace(prompt="0:")] * 24
    completions = 400
    data = label_steps(
        solving_target(task, tokenizer),
        model,
        tokenizer,
        task,
        jax.random.key(1),
        problems,
        completions,
        max_length(task),
    )
    unfinished = finished = 0
    for tokens, labels in zip(data.tokens, data.labels, strict=True):
        ends = np.flatnonzero(~np.isnan(labels))
        text = tokenizer.decode(tokens.tolist()).removeprefix("0:")
        assert tokens[ends[-1]] == tokenizer.eos_ids[0]
        assert labels[ends[-1]] == ("1" in text)
        finished += 1
        for end in ends[:-1]:
            prefix = tokenizer.decode(tokens[: end + 1].tolist()).removeprefix("0:")
            assert prefix.endswith("\n")
            chance = chance_of_a_right_end(model, task, tokenizer, "0:", prefix)
            error = np.sqrt(chance * (1 - chance) / completions)
            assert abs(labels[end] - chance) < 4 * error
            unfinished += 1
    assert finished > 3
    assert unfinished > 1


def test_reward_batches_show_every_row_once_an_epoch():
    rows = np.arange(10)[:, None]
    data = LabelledSteps(
        rows, rows.astype(np.float32), np.zeros((10, 1), bool), np.zeros(10, bool)
    )
    seen = np.concatenate([draw_labels(data, 4, 0, s)[0][:, 0] for s in range(5)])
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


def test_a_fresh_reward_model_starts_from_the_language_model_and_even_odds():
    _, _, model = small(seed=4)
    reward = extend_model(model, 2, rngs=nnx.Rngs(9))
    tokens = jnp.arange(12).reshape(2, 6)
    assert np.all(np.asarray(reward(tokens)) == 0.0)
    assert reward.config.num_layers == model.config.num_layers + 2
    old, new = nnx.state(model.trunk), nnx.state(reward.trunk)
    assert np.array_equal(new["embedding"][...], old["embedding"][...])
    for one, other in zip(
        jax.tree.leaves(old["blocks"]), jax.tree.leaves(new["blocks"]), strict=True
    ):
        assert np.array_equal(one, other[: len(one)])


@pytest.mark.long
def test_frozen_blocks_get_no_gradient_and_the_new_ones_do():
    _, _, model = small(seed=4)
    reward = extend_model(model, 1, rngs=nnx.Rngs(9))
    reward.score.kernel[...] = jnp.ones_like(reward.score.kernel[...])
    tokens = jnp.arange(2, 14).reshape(2, 6)
    graph, state = nnx.split(reward)
    slopes = jax.grad(lambda state: freeze(nnx.merge(graph, state), 1)(tokens).sum())(
        state
    )
    assert np.all(np.asarray(slopes["trunk"]["embedding"][...]) == 0)
    for leaf in jax.tree.leaves(slopes["trunk"]["blocks"]):
        assert np.all(np.asarray(leaf[:1]) == 0)
        assert np.any(np.asarray(leaf[1:]) != 0)
    assert np.array_equal(freeze(reward, 1)(tokens), reward(tokens))


def worked_with_marks():
    task, tokenizer, model = small(seed=4)
    tokens, learned = draw_solutions(task, tokenizer, 40, 0, 0)
    (colon,), (newline,) = tokenizer.encode(":"), tokenizer.encode("\n")
    marks = Marks(colon, (newline, *tokenizer.eos_ids), tokenizer.pad_id)
    return model, tokens, learned, marks


def test_likely_tokens_are_above_one_half_and_step_ends_remember_all_before(
    monkeypatch,
):
    model, tokens, learned, marks = worked_with_marks()
    # A model that expects nine of ten tokens and has no idea of the others.
    expects = np.random.default_rng(0).random(tokens.shape) < 0.9
    following = jax.nn.one_hot(np.roll(tokens, -1, axis=1), model.config.vocab_size)
    logits = 10.0 * following * np.roll(expects, -1, axis=1)[..., None]
    monkeypatch.setattr(LanguageModel, "__call__", lambda self, tokens: logits)

    found = np.asarray(mark_likely_tokens(model, jnp.asarray(tokens), marks))
    assert np.array_equal(~np.isnan(found), learned)
    remembered = 0
    for row in range(len(tokens)):
        columns = np.flatnonzero(learned[row])
        likely = expects[row, columns]
        for i, column in enumerate(columns):
            at_end = tokens[row, column] in marks.step_ends
            expected = likely[: i + 1].all() if at_end else likely[i]
            assert found[row, column] == expected
            remembered += at_end and likely[i] and not expected
    assert remembered > 50


def test_corruption_spares_prompts_step_ends_and_half_of_the_texts():
    _, tokens, learned, marks = worked_with_marks()
    tokens, learned = np.tile(tokens, (50, 1)), np.tile(learned, (50, 1))
    changed = corrupt(tokens, marks, 0, 7)
    struck = changed != tokens
    inner = learned & ~np.isin(tokens, marks.step_ends)
    assert not struck[~inner].any()
    assert np.isin(changed[struck], tokens[inner]).all()
    rows = struck.any(axis=1)
    assert 0.45 < rows.mean() < 0.5
    # One in nine or so of the new tokens is the old one by chance.
    assert 0.11 < struck[rows].sum() / inner[rows].sum() < 0.15
    assert np.array_equal(changed, corrupt(tokens, marks, 0, 7))
    assert not np.array_equal(changed, corrupt(tokens, marks, 0, 8))


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, 60).astype(float)
    truth = rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
    assert auc(scores, truth) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(scores, np.ones(60, bool)))


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["chain", pytest.param("countdown", marks=pytest.mark.slow)]
)
def test_the_shipped_models_are_as_good_as_their_metrics_say(name):
    task = get_task(name)
    policy, config = load(resolve(f"{name}-policy"))
    reward, _ = load(resolve(f"{name}-reward"))
    tokenizer = load_tokenizer(resolve(f"{name}-policy"))
    stated = json.loads((resolve(f"{name}-policy") / "metrics.json").read_text())
    judged = json.loads((resolve(f"{name}-reward") / "metrics.json").read_text())
    assert stated["weights"] == sum(x.size for x in weights(policy))
    assert 200_000 <= stated["weights"] <= 3_000_000
    assert config.eos_ids == tokenizer.eos_ids

    problems = task.problems("validation", 500, 123)
    data = label_steps(
        solving_target(task, tokenizer),
        policy,
        tokenizer,
        task,
        jax.random.key(7),
        problems,
        1,
        max_length(task),
    )
    solutions = data.solutions
    finals = solutions.labels[solutions.tokens == tokenizer.eos_ids[0]]
    accuracy = finals.sum(dtype=np.float64) / len(problems)
    claimed = stated["measured"]["temperature 1"]["accuracy"]
    assert 0.25 <= claimed <= 0.60
    assert abs(accuracy - claimed) < 4 * np.sqrt(claimed * (1 - claimed) / 500)
    found = judge(reward, data, tokenizer.eos_ids[0]).auc_on_track
    assert found == pytest.approx(judged["measured"]["auc_on_track"], abs=0.05)
