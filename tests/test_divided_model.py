"""A model that is divided over two processes gives the samples of one device."""

import json
import sys

import divided_process as divided
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from processes import Processes, ended, free_port

from tsi.engine.lanes import check_processes
from tsi.errors import ConfigurationError
from tsi.experiments.cli import main
from tsi.experiments.processes.process_group import Group
from tsi.experiments.rows.results import read_rows
from tsi.experiments.worlds.embedded_world import device_mesh


@pytest.fixture
def several():
    found = Processes()
    yield found
    found.close()


def start(several, devices, **settings):
    """Two processes with some devices each."""
    address = f"127.0.0.1:{free_port()}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    flags += " --xla_backend_optimization_level=0"
    return [
        several.start(
            [
                sys.executable,
                "divided_process.py",
                json.dumps({"address": address, "index": i, "count": 2, **settings}),
            ],
            XLA_FLAGS=flags,
            JAX_PLATFORMS="cpu",
        )
        for i in range(2)
    ]


def read_output(processes):
    """The lines that each process has printed, after they have ended well."""
    told = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    return [numbers_in(out) for out, _ in told]


def numbers_in(out):
    """What a process has printed; Gloo prints to the same stream."""
    lines = out.splitlines()
    return [json.loads(line) for line in lines if not line.startswith("[Gloo]")]


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_samples_are_those_of_one_device(several, devices):
    names = list(divided.CASES) if devices == 1 else ["tokens", "text"]
    first, second = read_output(start(several, devices, cases=names))
    # The second process knows of errors of the first only their texts.
    assert first == second
    for name, found in zip(names, first, strict=True):
        expected = divided.outcome(name)
        for part in ("failed", "ids", "texts", "ancestors", "tokens"):
            assert found[part] == expected[part], (name, part)
        for part in ("log_weights", "evidence"):
            for left, right in zip(found[part], expected[part], strict=True):
                np.testing.assert_allclose(left, right, atol=1e-4)
    by_name = dict(zip(names, first, strict=True))
    if "failing" in by_name:
        assert by_name["failing"]["failed"]
        assert by_name["failing"]["ids"]
        sizes = {len(texts) for texts in by_name["rounds"]["texts"]}
        assert len(sizes) > 1


@pytest.mark.long
@pytest.mark.parametrize("ends", ["stopped", "outside"])
def test_a_signal_to_one_process_stops_both_at_the_same_step(several, ends):
    processes = start(several, 1, ends=ends)
    told = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], told
    (first,), (second,) = (numbers_in(out) for out, _ in told)
    assert first == second
    assert first < 40


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "codes", "message"),
    [
        ("killed", [75, -9], "What was written is kept: run the same command again"),
        ("fails", [2, 2], "Process 1 has failed: the disk is full"),
        ("differs", [2, 2], "have made different decisions"),
    ],
)
def test_a_process_ends_with_the_one_that_has_the_rest_of_its_model(
    several, how, codes, message
):
    found, told = ended(start(several, 1, ends=how, patience=5.0))
    assert found == codes, told
    assert message in told[0], told


@pytest.mark.slow
def test_a_process_may_load_its_models_much_later_than_another(several):
    # JAX's own limit for the first collective is 30 seconds.
    first, second = read_output(start(several, 1, cases=["function"], late=45.0))
    assert first == second


def test_processes_that_hold_a_model_share_its_problems():
    groups = [Group(i, 6) for i in range(6)]
    for group in groups:
        group.hold_together(2)
    shares = [group.share(range(7)) for group in groups]
    assert shares[0] == shares[1] == [0, 3, 6]
    assert shares[2] == shares[3] == [1, 4]
    assert shares[4] == shares[5] == [2, 5]
    assert [group.writes for group in groups] == [True, False] * 3
    with pytest.raises(ConfigurationError, match="start a multiple of 4"):
        groups[0].hold_together(4)


@pytest.mark.long
def test_rows_of_two_processes_with_one_model_are_those_of_one_process(
    several, tmp_path
):
    plan = ["--num-problems", "3", "--methods", "smc", "--budgets", "2", "4"]
    command = [
        "scale", "--task", "chain", "--no-progress", "--model-parallel", "2", *plan
    ]  # fmt: skip
    script = "import sys; from tsi.experiments.cli import main; sys.exit(main())"
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for i in range(2):
        out = ["--out", str(tmp_path / "two"), "--distributed"]
        joined = ["--coordinator", address, "--num-processes", "2", "--process-id"]
        arguments = [sys.executable, "-c", script, *command, *out, *joined, str(i)]
        flags = "--xla_backend_optimization_level=0"
        processes.append(several.start(arguments, XLA_FLAGS=flags, JAX_PLATFORMS="cpu"))
    codes, told = ended(processes)
    assert codes == [0, 0], told
    one = tmp_path / "one"
    command[command.index("--model-parallel") :] = plan
    assert main([*command, "--out", str(one)]) == 0
    rows = [read_rows(path / "rows.jsonl") for path in (one, tmp_path / "two")]
    assert rows[0].keys() == rows[1].keys()
    for cell, row in rows[0].items():
        other = rows[1][cell]
        for part in ("selected", "correct", "generated_tokens", "reward_tokens"):
            assert row[part] == other[part], (cell, part)
    # The second process has written nothing, and its empty shard is gone.
    assert not list((tmp_path / "two").glob("rows-*"))


class Device:
    """A device of some process."""

    platform = "cpu"

    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("processes", "model_parallel", "message"),
    [
        ((0, 0, 1, 1), 3, "2 devices each"),
        ((0, 0, 1), 4, "1, 2 devices each"),
        ((0, 1, 2), 2, "there are 3 processes; start a multiple of 2"),
    ],
)
def test_processes_that_cannot_hold_a_model_together_are_refused(
    monkeypatch, processes, model_parallel, message
):
    devices = [Device(i) for i in processes]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:1])
    monkeypatch.setattr(jax, "process_count", lambda: len(set(processes)))
    with pytest.raises(ConfigurationError, match=message):
        device_mesh(model_parallel)


def test_a_mesh_with_groups_in_several_processes_is_refused():
    devices = np.asarray([[Device(0), Device(0)], [Device(1), Device(1)]])
    mesh = Mesh(devices, ("data", "model"))
    with pytest.raises(ConfigurationError, match="has 2 groups of devices of several"):
        check_processes(mesh)
    check_processes(Mesh(devices[:1], ("data", "model")))
    # One group of all four, divided over both processes.
    check_processes(Mesh(devices.reshape(1, 4), ("data", "model")))
