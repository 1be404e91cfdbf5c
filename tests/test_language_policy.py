"""Any model as the policy: files, folders and hub ids, examples, its own judgement."""

import dataclasses
import re

import huggingface_hub
import pytest
import tokenizers
from flax import nnx
from small_checkpoints import (
    TEMPLATE,
    bpe_tokenizer,
    small_config,
    small_model,
    write_gguf,
)
from tokenizers import decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as token_models

from tsi.errors import ConfigurationError, PromptTooLongError
from tsi.experiments.cli import main
from tsi.experiments.rows.results import read_rows
from tsi.experiments.tasks import TASKS, get_task
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.experiments.worlds.language_policy import (
    draw_examples,
    parse_switches,
    prompt_encoder,
)
from tsi.loading.model_checks import load_model
from tsi.loading.self_judge import ANSWERS, JUDGE_QUESTION, self_judge
from tsi.models.decoder import RewardModel
from tsi.models.heads import SequenceScorer
from tsi.models.loading.checkpoint import save
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.char_tokenizer import char_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.self_judge import SelfJudge

VOCABULARY = 400


def language_config(**changes):
    sizes = {"num_layers": 1, "vocab_size": VOCABULARY, "max_length": 640}
    return small_config(**(sizes | changes), eos_ids=(2,))


def folder_of(path, **changes):
    config = language_config(**changes)
    save(small_model(config), config, path, tokenizer=bpe_tokenizer())
    return path


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """The same kind of model in three places: a folder, a GGUF file and the hub."""
    root = tmp_path_factory.mktemp("policies")
    folder = folder_of(root / "folder")
    file = root / "model.gguf"
    write_gguf(file, folder, language_config(), tokenizer=bpe_tokenizer())

    def snapshot_download(repo, *, local_files_only=False, **patterns):
        if local_files_only:
            raise FileNotFoundError("not here yet")
        return str(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        yield {"folder": str(folder), "file": str(file), "hub": "Somebody/Model"}


@pytest.mark.long
@pytest.mark.parametrize("place", ["folder", "file", "hub"])
def test_solve_takes_a_policy_from_anywhere(policies, place, capsys):
    arguments = ["solve", "7*8+5-9", "--task", "chain", "--budget", "2"]
    arguments += ["--dtype", "bfloat16"]
    assert main([*arguments, "--policy", policies[place]]) == 0
    out = capsys.readouterr().out
    assert "Right answer: 52" in out
    assert "reward tokens" in out


@pytest.mark.long
def test_scale_takes_a_policy_from_anywhere(policies, tmp_path, capsys):
    arguments = ["scale", "--num-problems", "2", "--budgets", "2", "--no-progress"]
    arguments += ["--methods", "smc", "--out", str(tmp_path)]
    assert main([*arguments, "--policy", policies["file"]]) == 0
    assert "SMC" in capsys.readouterr().out


def test_a_policy_of_other_tokens_is_shown_examples_and_judges_itself(policies):
    world = embedded_world("chain", 1, policy=policies["folder"])
    target = world.engine.target
    assert isinstance(target.reward, SelfJudge)
    assert world.settings["reward_sha256"] is None
    ids = world.engine.encode(world.problems[0].prompt)
    tokenizer = load_tokenizer(policies["folder"])
    assert get_task("chain").rules in tokenizer.decode(ids)
    with pytest.raises(ConfigurationError, match="another tokenizer"):
        embedded_world("chain", 1, policy=policies["folder"], reward="chain-reward")


def test_a_task_without_models_of_its_own_needs_a_policy(policies, monkeypatch):
    monkeypatch.setitem(
        TASKS, "mine", dataclasses.replace(get_task("chain"), name="mine")
    )
    world = embedded_world("mine", 1, policy=policies["folder"])
    assert isinstance(world.engine.target.reward, SelfJudge)
    assert world.settings["task"] == "mine"
    with pytest.raises(ConfigurationError, match="mine has no models of its own; name"):
        embedded_world("mine", 1)


THINKS = TEMPLATE.replace(
    "assistant\n'", "assistant\n' + ('' if enable_thinking == false else '<think>')"
)


@pytest.mark.long
def test_switches_of_a_template_are_given_on_the_command_line(tmp_path, capsys):
    folder, tokenizer = folder_of(tmp_path / "thinker"), bpe_tokenizer()
    tokenizer.chat_template = THINKS
    tokenizer.save(folder)
    solve = ["solve", "7*8+5-9", "--task", "chain", "--budget", "2"]
    solve += ["--reward", "none"]
    solve += ["--policy", str(folder), "--method", "self_consistency"]
    assert main(solve) == 0
    # A model of random weights ends neither its thinking nor its solution.
    said = "The model was still thinking when the limit was reached; raise the limit"
    assert said in capsys.readouterr().out
    assert main([*solve, "--template-switch", "enable_thinking=false"]) == 0
    assert "still thinking" not in capsys.readouterr().out
    for switch, sentence in [
        ("thinking=false", "reads no switch 'thinking'. It reads: enable_thinking"),
        ("enable_thinking=False", "write it in JSON, enable_thinking=false"),
        ("enable_thinking", "is not written NAME=VALUE"),
    ]:
        assert main([*solve, "--template-switch", switch]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    out = tmp_path / "out"
    scale = ["scale", "--num-problems", "4", "--budgets", "1", "--no-progress"]
    scale += ["--policy", str(folder), "--methods", "self_consistency"]
    scale += ["--reward", "none", "--out", str(out)]
    assert main(scale) == 0
    assert "of 4 runs the model was still thinking" in capsys.readouterr().out
    rows = [*read_rows(out / "rows.jsonl").values()]
    assert any(row["num_thinking"] for row in rows)
    assert "template_switches" not in rows[0]["settings"]
    # Rows of another prompt are not mixed with these.
    assert main([*scale, "--template-switch", "enable_thinking=false"]) == 2
    assert "template_switches" in capsys.readouterr().err


def test_switches_are_read_as_json_or_text():
    written = ["a=false", "b=1.5", 'c={"d": [null]}', "e=high", "f=2024-07-26", "g==1"]
    assert parse_switches(written) == {
        "a": False,
        "b": 1.5,
        "c": {"d": [None]},
        "e": "high",
        "f": "2024-07-26",
        "g": "=1",
    }
    for odd in (
        ["a"],
        ["=1"],
        ["a="],
        ["a b=1"],
        ["a=1", "a=1"],
        ["a=None"],
        ["a=off"],
    ):
        with pytest.raises(ConfigurationError, match="template switch"):
            parse_switches(odd)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_examples_are_right_and_are_none_of_the_problems_asked(task):
    task = get_task(task)
    asked = {problem.prompt for problem in task.problems("test", 400, 0)}
    worked = draw_examples(task)
    assert len(worked) == 3
    for prompt, solution in worked:
        assert prompt not in asked
        assert task.verify(task.problem(prompt), solution)


def test_a_chat_model_sees_examples_as_turns():
    tokenizer, task = bpe_tokenizer(), get_task("chain")
    turns = [("system", task.rules)]
    for prompt, solution in draw_examples(task):
        turns += [("user", prompt), ("assistant", solution)]
    text = "".join(
        f"<|im_start|>{role}\n{content}<|im_end|>\n"
        for role, content in [*turns, ("user", "1+2+3+4:")]
    )
    expected = tokenizer.encode(text + "<|im_start|>assistant\n", allow_special=True)
    assert prompt_encoder(task, tokenizer)("1+2+3+4:") == expected
    # Without support for system messages the rules are in the first question.
    tokenizer.chat_template = TEMPLATE.replace(
        "{% for",
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('no system') }}{% endif %}{% for",
        1,
    )
    turns[:2] = [("user", f"{task.rules}\n\n{turns[1][1]}")]
    text = "".join(
        f"<|im_start|>{role}\n{content}<|im_end|>\n"
        for role, content in [*turns, ("user", "1+2+3+4:")]
    )
    expected = tokenizer.encode(text + "<|im_start|>assistant\n", allow_special=True)
    assert prompt_encoder(task, tokenizer)("1+2+3+4:") == expected


def test_a_base_model_sees_examples_that_end():
    tokenizer, task = bpe_tokenizer(), get_task("chain")
    tokenizer.chat_template = None
    ids = prompt_encoder(task, tokenizer)("1+2+3+4:")
    assert ids.count(2) == 3
    worked = "".join(f"{p}\n{s}" for p, s in draw_examples(task))
    assert tokenizer.decode(ids) == f"{task.rules}\n\n{worked}1+2+3+4:\n"


def test_the_judge_closes_the_turn_and_asks():
    tokenizer = bpe_tokenizer()
    judge = self_judge(tokenizer)
    turns = f"<|im_end|>\n<|im_start|>user\n{JUDGE_QUESTION}<|im_end|>\n"
    expected = tokenizer.encode(turns + "<|im_start|>assistant\n", allow_special=True)
    assert list(judge.question) == expected
    assert (judge.yes, judge.no) == (
        tokenizer.encode("Yes")[0],
        tokenizer.encode("No")[0],
    )
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("m['content']", "m['role']")
    with pytest.raises(ConfigurationError, match="drops messages of the assistant"):
        self_judge(tokenizer)
    tokenizer.chat_template = None
    assert JUDGE_QUESTION in tokenizer.decode(self_judge(tokenizer).question)


def tokenizer_of_words(kind: str) -> Tokenizer:
    """Without a chat template; a space is part of the word that follows it."""
    backend = tokenizers.Tokenizer(token_models.BPE(byte_fallback=True))
    text = [f"7*8=56\n56+5=61\n{JUDGE_QUESTION}\nAnswer: {a}" for a in ANSWERS]
    if kind == "byte level":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        first = [normalizers.Prepend("▁")] if kind == "space first" else []
        backend.normalizer = normalizers.Sequence(
            [*first, normalizers.Replace(" ", "▁")]
        )
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=[*map(str, range(10)), *"+-*=() plus is"],
    )
    backend.train_from_iterator([*text * 4, "7 " * 99], trainer)
    return Tokenizer(backend)


@pytest.mark.parametrize("kind", ["byte level", "space first", "spaces"])
def test_the_judge_compares_what_really_follows_a_question(kind):
    tokenizer = tokenizer_of_words(kind)
    judge = self_judge(tokenizer)
    solution = "7*8=56\n56+5=61\n"
    for id, answer in zip((judge.yes, judge.no), ANSWERS, strict=True):
        whole = f"{solution}\n{JUDGE_QUESTION}\nAnswer: {answer}"
        shown = [*tokenizer.encode(solution), *judge.question, id]
        assert shown == tokenizer.encode(whole)
        assert tokenizer.token_bytes(id) == f" {answer}".encode()


def test_what_both_answers_begin_with_belongs_to_the_question():
    # Without merges a space is a token, and so is each letter of the answers.
    alphabet = "".join(sorted({*JUDGE_QUESTION, *"\n:Answer 7plus8is15YesNo"}))
    tokenizer = char_tokenizer(alphabet)
    judge = self_judge(tokenizer)
    assert tokenizer.decode(judge.question) == f"\n{JUDGE_QUESTION}\nAnswer: "
    assert (judge.yes, judge.no) == tuple(tokenizer.encode("YN"))


def test_a_chat_template_may_open_the_answer_itself():
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace(
        "m['content']", "('> ' if m['role'] == 'assistant' else '') + m['content']"
    )
    judge = self_judge(tokenizer)
    assert tokenizer.decode(judge.question).endswith("\nassistant\n> ")
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace(
        "m['content']", "('' if m['content'] in ('Yes', 'No') else m['content'])"
    )
    with pytest.raises(ConfigurationError, match="does not distinguish"):
        self_judge(tokenizer)


def test_a_prompt_beyond_the_context_is_refused_before_anything_runs(tmp_path, capsys):
    folder = str(folder_of(tmp_path / "short", max_length=100))
    with pytest.raises(PromptTooLongError, match="context of 100"):
        embedded_world("chain", 40, policy=folder)
    assert main(["solve", "7*8+5-9", "--task", "chain", "--policy", folder]) == 2
    error = capsys.readouterr().err
    assert "max_tokens=70" in error
    assert error.count("\n") == 1


def test_a_chat_template_that_fails_is_named_with_its_model(tmp_path, capsys):
    folder = folder_of(tmp_path / "odd-template")
    (folder / "chat_template.jinja").write_text(
        "{{ raise_exception('only one user turn, please') }}"
    )
    assert main(["solve", "7*8+5-9", "--policy", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "only one user turn, please" in error
    assert "odd-template" in error


@pytest.mark.long
def test_a_reward_model_of_another_tokenizer_is_named_with_its_format(tmp_path, capsys):
    folder = folder_of(tmp_path / "reward", max_length=1024)
    arguments = ["solve", "3+4*2-1", "--budget", "2"]
    assert main([*arguments, "--reward", f"rlhflow:{folder}"]) == 0
    said = capsys.readouterr().out
    read = int(re.search(r"(\d+) reward tokens", said)[1])
    written = int(re.search(r"(\d+) tokens, ", said)[1])
    # Every character is read in a chat turn of its own step, hence more than written.
    assert read > 2 * written > 0
    assert main([*arguments, "--reward", str(folder)]) != 0
    assert "qwen:PATH" in capsys.readouterr().err
    assert main([*arguments, "--reward", f"skywork:{folder}"]) != 0
    assert "Choose the format of this model" in capsys.readouterr().err


@pytest.mark.long
def test_models_that_take_turns_write_the_same(tmp_path, capsys):
    folder = folder_of(tmp_path / "reward", max_length=1024)
    arguments = ["solve", "3+4*2-1", "--budget", "3"]
    texts = []
    for more in ([], ["--offload-weights"]):
        assert main([*arguments, "--reward", f"rlhflow:{folder}", *more]) == 0
        # Without what differs between two runs of the same command.
        text = capsys.readouterr().out
        texts.append(re.sub(r"[\d.]+ (m?s|seconds?|minutes?)\b", "", text))
    assert texts[0] == texts[1]
    assert main([*arguments, "--offload-weights"]) == 2
    error = capsys.readouterr().err
    assert "Leave out offload_weights (--offload-weights)." in error
    assert error.count("\n") == 1
    served = ["--policy", "served:http://localhost:1", "--offload-weights"]
    assert main([*arguments, *served]) == 2
    assert "--offload-weights is for models in this process" in capsys.readouterr().err


def test_a_head_of_another_kind_is_not_read_as_a_token_head(tmp_path):
    config = language_config()
    save(SequenceScorer(config, rngs=nnx.Rngs(0)), config, tmp_path)
    with pytest.raises(ConfigurationError, match="SequenceScorer, and"):
        load_model(tmp_path, RewardModel, "reward")
