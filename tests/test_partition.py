"""Weights divided over simulated devices, and the numbers of one device."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import test_engine
import tiny_language as tiny
from family_configs import family_configs
from jax.sharding import AxisType, PartitionSpec
from small_checkpoints import logits, saved, small_config

from tsi import samplers
from tsi.engine.engine import Engine
from tsi.engine.meters.clock import Timed
from tsi.engine.writers import Writers
from tsi.errors import ConfigurationError
from tsi.experiments.cli import main
from tsi.models.families.architectures import FAMILIES
from tsi.models.loading.checkpoint import load, save
from tsi.models.partition import make_mesh, memory, sharding_of

EXPLORER = samplers.particle_gibbs()
TOKENS = np.arange(18).reshape(2, 9) % 40
NAMES = sorted(family_configs())
# Heads that four devices divide, with windows, and heads that they do not.
QUICK = ("gemma3", "llama", "phi3")
FAMILY = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in NAMES
]

COLLECTIVES = re.compile(
    "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
)

ON_EIGHT_DEVICES = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_partition as t
print(json.dumps(t.{function}(Path({folder!r}))))
"""


def all_families(folder: Path):
    """What the checkpoints of all families give on a mesh of 2 times 4 devices."""
    return divided(folder, NAMES)


def divided(folder: Path, names):
    """What some checkpoints give on a mesh of 2 times 4 devices."""
    mesh = make_mesh(2, 4)
    explicit = jax.make_mesh((2, 4), ("data", "model"))
    assert explicit.axis_types == (AxisType.Explicit,) * 2
    families = {}
    for name in names:
        model, _ = load(folder / name, mesh=explicit if name == "llama" else mesh)
        where = memory(model)
        families[name] = {
            "logits": logits(model, TOKENS).tolist(),
            "weights": where.total,
            "devices": list(where.by_device.values()),
            "text": str(where),
        }
    return families


def on_eight_devices(folder: Path):
    """What engines and the command line give on some or all of eight devices.

    Each group of devices compiles its own programs, hence few groups.
    """
    drawn, caches, collectives = {}, {}, {}
    for data, model in ((2, 1), (1, 4), (2, 2)):
        draw, shape = draw_with_loaded(folder, mesh_of(data, model)), f"{data} {model}"
        with cache_memory() as seen, collectives_of_programs() as found:
            drawn[shape] = draw(test_engine.SAMPLER)
        caches[shape], collectives[shape] = list(seen.values()), found
    return {
        "families": divided(folder, QUICK),
        "samples": drawn,
        # Along both axes at once.
        "explored": draw(EXPLORER),
        "caches": caches,
        "collectives": collectives,
        "solved": solved("--model-parallel", "2"),
        "refused": solved("--model-parallel", "3"),
    }


def mesh_of(data: int, model: int):
    """A mesh of the first devices."""
    return make_mesh(data, model, devices=jax.devices()[: data * model])


def solved(*options: str) -> str:
    """What the command line says of a problem, without the time that it took."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        main(["solve", "7*8+5-9", "--budget", "8", *options])
    return re.sub(r"[\d.]+ s$", "", text.getvalue(), flags=re.MULTILINE)


@contextlib.contextmanager
def cache_memory():
    """By lane, the bytes of its slots: of all, and on each device that has some."""
    seen, write = {}, Writers.write

    def watch(self, *arguments):
        ended = write(self, *arguments)
        where = memory(self.slots.cache)
        seen[id(self)] = [where.total, where.by_device]
        return ended

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writers, "write", watch)
        yield seen


@contextlib.contextmanager
def collectives_of_programs():
    """The collectives in the HLO of programs that move, fork or draw, by part."""
    found, call = {}, Timed.__call__

    def watch(self, *arguments):
        name = self.program.__name__
        by_name = found.setdefault(self.part, {})
        if self.part in ("move", "decide", "decode") and name not in by_name:
            hlo = self.program.lower(*arguments).compile().as_text()
            by_name[name] = sorted(set(COLLECTIVES.findall(hlo)))
        return call(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Timed, "__call__", watch)
        yield found


def draw_with_loaded(folder: Path, mesh=None):
    """A function of a sampler or an explorer: what an engine draws with it.

    On a mesh, the weights stay where they were loaded.
    """
    policy, reward = (
        load(folder / name, mesh=mesh)[0] for name in ("policy", "reward")
    )
    engine = Engine(
        tiny.target(),
        policy,
        reward,
        encode=tiny.encode,
        decode=tiny.decode,
        max_rows=32,
        mesh=mesh,
    )
    assert memory(engine.policy) == memory(policy)
    arguments = (jax.random.key(7), test_engine.PROBLEMS[:4], 8)

    def draw(sampler):
        results = engine.run(sampler, *arguments, extract=test_engine.extract)
        return [[r.texts, r.steps.ancestors.tolist(), r.selected] for r in results]

    return draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    for name, config in family_configs().items():
        saved(folder / name, config)
    for name, model in zip(("policy", "reward"), tiny.models(), strict=True):
        save(model, model.config, folder / name)
    return folder


def answer(folder: Path, function: str):
    """What a function says in a process of its own, that simulates eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        flags = "--xla_force_host_platform_device_count=8"
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {flags}")
        patch.setenv("JAX_PLATFORMS", "cpu")
        script = ON_EIGHT_DEVICES.format(
            tests=str(Path(__file__).parent), folder=str(folder), function=function
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def eight(folder):
    return answer(folder, "on_eight_devices")


@pytest.fixture(scope="module")
def others(folder):
    return answer(folder, "all_families")


@pytest.fixture
def family(name, request):
    """What eight devices say of one family."""
    if name in QUICK:
        return request.getfixturevalue("eight")["families"][name]
    return request.getfixturevalue("others")[name]


def test_every_family_has_a_configuration_here():
    assert set(NAMES) == set(FAMILIES)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILY)
def test_eight_devices_give_the_logits_of_one(folder, family, name):
    alone = logits(load(folder / name)[0], TOKENS)
    np.testing.assert_allclose(np.asarray(family["logits"]), alone, atol=2e-5)


@pytest.mark.long
def test_an_engine_draws_the_same_from_divided_problems_and_weights(folder, eight):
    draw = draw_with_loaded(folder)
    alone = json.loads(json.dumps(draw(test_engine.SAMPLER)))
    assert eight["samples"] == dict.fromkeys(("2 1", "1 4", "2 2"), alone)
    assert eight["explored"] == json.loads(json.dumps(draw(EXPLORER)))


@pytest.mark.long
def test_the_command_line_divides_models_and_solves_the_same(eight):
    assert eight["solved"] == solved() != ""
    assert "choose a divisor of 8" in eight["refused"]


@pytest.mark.long
def test_keys_and_values_lie_with_their_problems_divided_by_their_heads(eight):
    """Of 2 heads: by two devices, and by four not at all; problems by ``data``."""
    for shape, lanes, model, heads in (
        ("2 1", 2, 1, 1),
        ("2 2", 2, 2, 2),
        ("1 4", 1, 4, 1),
    ):
        found = eight["caches"][shape]
        assert len(found) == lanes
        devices = [device for _, where in found for device in where]
        assert len(devices) == len(set(devices)) == lanes * model
        for total, where in found:
            assert total > 0
            assert list(where.values()) == [total // heads] * model


@pytest.mark.long
def test_no_byte_of_a_cache_crosses_devices_at_a_fork(eight):
    for shape, parts in eight["collectives"].items():
        programs = parts["move"] | parts["decide"]
        # Forks of rows, blocks to slots, and slots to blocks.
        assert {"_arrange", "page_in", "page_out", "_admit"} <= programs.keys()
        assert not any(programs.values())
        # Only products with divided weights are summed over devices.
        assert any(parts["decode"].values()) == (not shape.endswith(" 1"))


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILY)
def test_each_device_holds_a_quarter_of_what_four_divide(folder, family, name):
    config = family_configs()[name]
    whole = memory(load(folder / name)[0])
    assert list(whole.by_device.values()) == [whole.total] == [family["weights"]]
    on_each = whole.total - 3 * _divided(config) // 4
    assert family["devices"] == [on_each] * 8
    assert f"{family['devices'][0] / 1e6:.1f} MB" in family["text"]


def _divided(config) -> int:
    """Bytes of the parameters that four devices divide, counted by hand."""
    d, layers = config.width, config.num_layers
    entries = 0
    if config.num_heads % 4 == 0:
        entries += layers * 2 * d * config.num_heads * config.head_width
        entries += layers * config.attention_bias * config.num_heads * config.head_width
    if config.num_kv_heads % 4 == 0:
        kv = config.num_kv_heads * config.head_width
        entries += layers * 2 * kv * (d + config.attention_bias)
    if config.hidden % 4 == 0:
        entries += layers * config.hidden * (3 * d + 2 * config.mlp_bias)
    if config.vocab_size % 4 == 0:
        entries += (1 if config.tied else 2) * config.vocab_size * d
    return 4 * entries


def test_a_mesh_without_a_model_axis_keeps_weights_whole():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    path, config = "trunk.blocks.attention.query.kernel", small_config()
    assert sharding_of(path, (3, 32, 32), config, mesh).spec == PartitionSpec(
        None, None, None
    )


@pytest.mark.parametrize(("data", "model"), [(1, 2), (0, 1), (2, 1)])
def test_a_mesh_of_more_devices_than_there_are_is_refused(data, model):
    with pytest.raises(ConfigurationError, match="there are 1"):
        make_mesh(data, model, devices=jax.devices()[:1])
