"""Joining processes: addresses, ports and meshes that cannot be used."""

import socket
from types import SimpleNamespace

import jax
import pytest
from processes import free_port

from tsi.errors import ConfigurationError
from tsi.experiments.processes import coordinator
from tsi.experiments.processes.distributed import group_of, join_processes
from tsi.experiments.worlds.embedded_world import device_mesh
from tsi.models.partition import DATA, MODEL


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((False, "host:1", None, None), "need --distributed"),
        ((True, "host:1", 2, None), "one of the three is missing"),
        ((True, "host", 2, 0), "is not HOST:PORT"),
        ((True, ":80", 2, 0), "is not HOST:PORT"),
        ((True, "host:²", 2, 0), "is not HOST:PORT"),
        ((True, "host:99999", 2, 0), "has no valid port: ports are 1 to 65535"),
        ((True, "host:99999", 2, 1), "has no valid port"),
        ((True, "host:0", 2, 1), "has no valid port"),
        ((True, "host:80", 0, 0), "cannot be 0 processes"),
        ((True, "host:80", 2, 7), "7 is not an index of 2 processes: indices are 0"),
        ((True, "host:80", 2, 2), "2 is not an index of 2 processes"),
        ((True, "host:80", 2, -1), "-1 is not an index of 2 processes"),
        ((True, None, None, None), "No cluster was detected"),
    ],
)
def test_addresses_that_cannot_be_used_are_a_sentence(arguments, sentence, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(ConfigurationError, match=sentence), group_of(*arguments):
        pass


def test_processes_that_cannot_be_joined_are_a_sentence(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nlong report")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(coordinator, "JOIN_TIMEOUT", 0.3)
    sentence = r"joined: DEADLINE_EXCEEDED: Barrier timed out\. Check that process 0"
    with (
        pytest.raises(ConfigurationError, match=sentence),
        join_processes(f"10.0.0.1:{free_port()}", 2, 0),
    ):
        pass
    with (
        pytest.raises(ConfigurationError, match="Process 0 did not answer at 127"),
        join_processes(f"127.0.0.1:{free_port()}", 2, 1),
    ):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_of_another_program_is_a_sentence_at_process_0(monkeypatch, host):
    def crash(*_, **__):
        pytest.fail("JAX would have ended the program.")

    monkeypatch.setattr(jax.distributed, "initialize", crash)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        sentence = rf"cannot listen at port {port} of its host \(Address already in use"
        with (
            pytest.raises(ConfigurationError, match=sentence),
            join_processes(f"127.0.0.1:{port}", 2, 0),
        ):
            pass
        monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", f"{host}:{port}")
        with pytest.raises(ConfigurationError, match=sentence):
            coordinator.check_free(f"127.0.0.1:{free_port()}")
    # Given back, it can be listened at.
    coordinator.check_free(f"127.0.0.1:{port}")


def test_a_mesh_is_of_the_devices_of_this_process(monkeypatch):
    here = jax.devices()
    there = [SimpleNamespace(process_index=1)] * (len(here) + 1)
    monkeypatch.setattr(jax, "devices", lambda *_: [*there, *here])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = device_mesh()
    if len(here) > 1:
        assert mesh.shape == {DATA: len(here), MODEL: 1}
    else:
        assert mesh is None
    with pytest.raises(ConfigurationError, match="which must have equally many"):
        device_mesh(len(here) + 1)
