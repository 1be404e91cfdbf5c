"""Every reward by its name, from the command line down to what it scores."""

import math
import re

import jax
import numpy as np
import pytest
from flax import nnx
from small_checkpoints import bpe_tokenizer, small_config, small_model

from tsi.errors import CheckpointError, ConfigurationError, UnknownNameError
from tsi.experiments.cli import main
from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.rows.results import read_rows
from tsi.experiments.tasks import get_task
from tsi.experiments.tasks.task_verifier import outcome_check, prefix_check
from tsi.experiments.training.train_policy import task_tokenizer, tiny_config
from tsi.experiments.worlds.answer_grading import AnswerGrading
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.experiments.worlds.language_policy import prompt_encoder
from tsi.loading.language_reward import PromptContinuation
from tsi.loading.named_reward import KINDS, format_kind, list_forms, parse_reward
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.heads import ValueHead
from tsi.models.loading.checkpoint import save
from tsi.models.loading.value_head import save_value_head
from tsi.rewards.formats import FORMATS
from tsi.rewards.formatted import FormattedReward

WIDTH = 16


def outcome_of_chain(task):
    problems = [task.problem("1+2+3-4:")]
    return outcome_check(problems, task.extract, AnswerGrading(task))


CHECKS = (prefix_check, outcome_of_chain)
SOLVE = ["solve", "3+4*2-1", "--budget", "2", "--method", "best_of_n"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """An untrained policy and token head of chain's tokens, a value head, and a chat
    model of other tokens.
    """
    root = tmp_path_factory.mktemp("models")
    task = get_task("chain")
    tokenizer = task_tokenizer(task)
    config = tiny_config(task, tokenizer, width=WIDTH, hidden=16, num_layers=1)
    for seed, (name, kind) in enumerate({"p": LanguageModel, "r": RewardModel}.items()):
        model = kind(config, rngs=nnx.Rngs(seed))
        save(model, config, root / name, tokenizer=tokenizer)
    save_value_head(ValueHead(WIDTH, rngs=nnx.Rngs(2)), root / "v")
    chat = small_config(num_layers=1, vocab_size=400, max_length=1024, eos_ids=(2,))
    save(small_model(chat), chat, root / "chat", tokenizer=bpe_tokenizer())
    return {path.name: str(path) for path in root.iterdir()}


def run(method, *, problems=2, num_particles=4, task="chain", **world):
    made = embedded_world(task, problems, **world)
    return made, made.engine.run(
        sampler_of(method, made.max_steps),
        jax.random.key(0),
        made.problems,
        num_particles,
        extract=made.extract,
    )


def test_a_name_is_a_kind_with_a_model_or_a_model():
    for kind in KINDS:
        argument = "a/b:c" if KINDS[kind].argument else ""
        argument = "last=8" if KINDS[kind].optional else argument
        text = f"{kind}:{argument}" if argument else kind
        assert parse_reward(text) == (kind, argument, "last")
    for model in ("chain-reward", "/models/a:b", "./judge"):
        assert parse_reward(model) == ("head", model, "last")
        assert str(parse_reward(f"head:{model}")) == model
    assert str(parse_reward("qwen:a/b")) == "qwen:a/b"
    # A published one is read in its format, whether or not that is said.
    published = parse_reward("skywork-prm-1.5b", "min")
    assert published == parse_reward("skywork:skywork-prm-1.5b", "min")
    assert published.kind == "skywork"
    assert set(FORMATS) < set(KINDS)


@pytest.mark.parametrize("name", ["gpt:folder", "judge2:", ":x"])
def test_an_unknown_kind_lists_all_of_them(name):
    with pytest.raises(UnknownNameError) as raised:
        parse_reward(name)
    for form in list_forms():
        assert form in str(raised.value)


@pytest.mark.parametrize(
    "name", ["judge:x", "none:", "value", "qwen:", "likelihood", "mean-log-prob:"]
)
def test_a_kind_with_too_much_or_too_little_says_how_it_is_written(name):
    kind = name.partition(":")[0]
    expected = re.escape(f"is written {format_kind(kind)}, not '{name}'")
    with pytest.raises(ConfigurationError, match=expected):
        parse_reward(name)


def test_only_what_scores_steps_is_aggregated():
    assert parse_reward("qwen:m", "model").aggregation == "model"
    assert parse_reward("judge", "min").aggregation == "min"
    whole = ("likelihood:m", "outcome:m", "verifier", "outcome-verifier", "none")
    for name in (*whole, "self-certainty", "tail-entropy:last=3"):
        with pytest.raises(ConfigurationError, match="no step scores to aggregate"):
            parse_reward(name, "min")
    for name in ("judge", "value:f", "chain-reward"):
        with pytest.raises(ConfigurationError, match="one of last, min, product, mean"):
            parse_reward(name, "model")
    with pytest.raises(UnknownNameError, match="last, mean, min, model, product"):
        parse_reward("judge", "median")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--reward", "jugde"], "no reward named 'jugde'. Known: chain-reward"),
        (["--reward", "jugde"], "outcome-verifier, outcome:MODEL"),
        (["--reward", "qwem:x"], "no kind of reward named 'qwem'. Known: head:MODEL"),
        (["--reward", "value"], "is written value:FILE"),
        (["--reward", "none", "--aggregation", "min"], "no step scores"),
        (["--reward", "value:nowhere"], "no value head at nowhere"),
        (["--reward", "judge"], "cannot spell"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(arguments, sentence, capsys):
    assert main([*SOLVE, *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_value_head_of_another_policy_or_damaged_is_refused(places, tmp_path, capsys):
    # The embedded policy is 80 wide.
    assert main([*SOLVE, "--reward", f"value:{places['v']}"]) == 2
    assert "of width 16, and the policy's have width 80" in capsys.readouterr().err
    damaged = tmp_path / "v"
    with open(places["v"], "rb") as file:
        damaged.write_bytes(file.read()[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        embedded_world("chain", 1, policy=places["p"], reward=f"value:{damaged}")


@pytest.mark.parametrize(
    ("text", "ended", "prefix", "outcome"),
    [
        ("+2=3\n", False, 1, 0),
        ("+2=4\n", False, -1, 0),
        # Nothing wrong so far, and yet no answer.
        ("+2=3\n", True, -1, -1),
        ("+2=3\n+3=6\n-4=2", True, 1, 1),
        ("+2=3\n+3=6\n-4=3", True, -1, -1),
    ],
)
def test_an_end_is_judged_by_its_answer(text, ended, prefix, outcome):
    task, sure = get_task("chain"), math.log(99)
    found = [check(task)("1+2+3-4:", text, ended) for check in CHECKS]
    assert found == pytest.approx([prefix * sure, outcome * sure])


def test_problems_of_one_question_need_one_answer():
    task = get_task("chain")
    one = task.problem("1+2+3-4:")
    outcome_check([one, one._replace(id=1)], task.extract, AnswerGrading(task))
    with pytest.raises(ConfigurationError, match="same question and different answers"):
        outcome_check(
            [one, one._replace(id=1, answer="3")], task.extract, AnswerGrading(task)
        )


def right_so_far(prompt: str, text: str) -> bool:
    """Whether a chain's lines follow from its prompt, by Python's own arithmetic."""
    value, rest = int(prompt[0]), prompt[1:].rstrip(":")
    for line in text.splitlines():
        value = eval(f"({value}){rest[:2]}") % 100
        if line != f"{rest[:2]}={value}":
            return False
        rest = rest[2:]
    # A finished text has come to the chain's end, and any other has not.
    return bool(rest) == text.endswith("\n")


@pytest.mark.long
@pytest.mark.parametrize("method", ["particle_filter", "quest"])
def test_a_verifier_knows_which_prefixes_are_right(method):
    world, results = run(method, problems=6, num_particles=8, reward="verifier")
    seen = set()
    for problem, result in zip(world.problems, results, strict=True):
        for n, steps in enumerate(result.particles.step_texts):
            if result.particles.truncated[n]:
                continue
            right = right_so_far(problem.prompt, "".join(steps))
            assert result.rewards[n] == pytest.approx(0.99 if right else 0.01)
            seen.add(right)
        assert result.ledger.reward_tokens == 0
    assert seen == {True, False}


@pytest.mark.long
def test_an_outcome_verifier_says_nothing_before_the_end():
    world, results = run("self_consistency", problems=6, reward="outcome-verifier")
    seen = set()
    for problem, result in zip(world.problems, results, strict=True):
        for n, steps in enumerate(result.particles.step_texts):
            last = len(steps) - 1
            np.testing.assert_allclose(result.steps.rewards[:last, n], 0.5)
            if not result.particles.truncated[n]:
                right = result.answers[n] == problem.answer
                assert result.rewards[n] == pytest.approx(0.99 if right else 0.01)
                seen.add(right)
    assert seen == {True, False}


@pytest.mark.long
def test_against_itself_a_policy_is_no_more_likely():
    _, results = run("smc", reward="likelihood:chain-policy")
    for result in results:
        assert not result.particles.truncated.all()
        np.testing.assert_allclose(result.rewards, 0.5, atol=1e-4)
        assert result.ledger.reward_tokens > 0
        assert math.isclose(result.log_evidence, 0.0, abs_tol=1e-3)


def test_a_larger_model_of_other_tokens_is_shown_examples(places):
    task, tokenizer = get_task("chain"), bpe_tokenizer()
    shown = prompt_encoder(task, tokenizer)
    format = PromptContinuation(tokenizer, encode=shown)
    tokens, marks = format.render("1+2+3+4:", ["+2=3\n", "+3=6"], True)
    solution = [*tokenizer.encode("+2=3\n+3=6"), tokenizer.eos_ids[0]]
    prompt = shown("1+2+3+4:")
    assert tokens == [*prompt, *solution]
    assert marks == [len(prompt) - 1, len(tokens) - 1]
    world = embedded_world("chain", 1, reward=f"likelihood:{places['chat']}")
    reward = world.engine.target.reward
    assert isinstance(reward.format, PromptContinuation)
    # Room for the prompt and twice the solution's tokens.
    assert reward.max_tokens >= len(prompt) + 2 * world.engine.target.max_tokens
    reward.prepare([problem.prompt for problem in world.problems])


@pytest.mark.long
def test_scores_of_steps_are_aggregated_for_a_token_head(places):
    models = {"policy": places["p"], "reward": places["r"]}
    (_, plain), (world, least) = (
        run("self_consistency", aggregation=how, **models) for how in ("last", "min")
    )
    assert world.settings["aggregation"] == "min"
    assert world.settings["reward"] == places["r"]
    for one, other in zip(plain, least, strict=True):
        assert one.texts == other.texts
        running = np.minimum.accumulate(one.steps.rewards, axis=0)
        np.testing.assert_allclose(other.steps.rewards, running, atol=1e-6)
        assert (np.asarray(one.steps.rewards) > running + 1e-4).any()


def test_formats_and_judges_take_their_aggregation(places):
    world = embedded_world(
        "chain", 1, reward=f"rlhflow:{places['chat']}", aggregation="product"
    )
    reward = world.engine.target.reward
    assert isinstance(reward, FormattedReward)
    assert reward.aggregation == "product"
    asked = {"policy": places["chat"], "problems": 1, "task": "chain"}
    default, named = embedded_world(**asked), embedded_world(**asked, reward="judge")
    assert default.settings == named.settings
    least = embedded_world(**asked, aggregation="min").engine.target.reward
    assert least.aggregation == "min"
    # The question's room in the context is still seen.
    judge = default.engine.target.reward
    assert least.positions_beyond == judge.positions_beyond > 0


@pytest.mark.long
def test_scale_reads_a_value_head_and_keeps_other_rewards_out_of_its_file(
    places, tmp_path, capsys
):
    command = ["scale", "--num-problems", "2", "--budgets", "2", "--no-progress"]
    command += ["--methods", "smc", "--out", str(tmp_path), "--policy", places["p"]]
    value = ["--reward", f"value:{places['v']}"]
    assert main([*command, *value]) == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len(rows) == 2
    for row in rows.values():
        assert row["settings"]["reward"] == f"value:{places['v']}"
        assert len(row["settings"]["reward_sha256"]) == 64
        # One token a step of each particle.
        assert 2 <= row["reward_tokens"] <= 2 * row["num_steps"]
    capsys.readouterr()
    for other in (["--reward", "none"], [*value, "--aggregation", "mean"]):
        assert main([*command, *other]) == 2
        assert "settings" in capsys.readouterr().err


def test_none_reads_nothing(places):
    world, results = run("best_of_n", policy=places["p"], reward="none")
    assert world.settings["reward"] == "none"
    for result in results:
        np.testing.assert_array_equal(result.rewards, 0.5)
        assert result.ledger.reward_tokens == 0
