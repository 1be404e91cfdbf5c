"""The address of process 0, looked at before JAX gets it.

JAX ends the program in C++ where a port cannot be used or nobody answers, and waits in
functions that no signal interrupts.
"""

import os
import socket
import time

from tsi.errors import ConfigurationError

JOIN_TIMEOUT = 300.0
"""Seconds in which process 0 must answer at the start, as in JAX."""
PAUSE = 0.1
"""Seconds between two attempts to reach it."""
MAX_PORT = 65535
"""The largest port."""


def check_parts(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Refuse what cannot be the parts of a run that is joined by hand.

    Args:
        coordinator: ``HOST:PORT`` of process 0; None, as the others, where the cluster
            is detected.
        num_processes: how many there are.
        process_id: which this one is, from 0.

    Raises:
        ConfigurationError: some are missing, or one is none.
    """
    if coordinator is None and num_processes is None and process_id is None:
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigurationError(
            "Processes that are joined by hand need a coordinator (HOST:PORT of "
            "process 0), a number of processes and each its own number from 0; one of "
            "the three is missing."
        )
    host, port = split(coordinator)
    if not host or not (port.isascii() and port.isdigit()):
        raise ConfigurationError(
            f"The coordinator {coordinator!r} is not HOST:PORT, the address of process "
            "0 with a free port of its host."
        )
    if not 1 <= int(port) <= MAX_PORT:
        raise ConfigurationError(
            f"The coordinator {coordinator!r} has no port: those are 1 to {MAX_PORT}."
        )
    if num_processes < 1:
        raise ConfigurationError(
            f"There cannot be {num_processes} processes; give the number of all that "
            "are started, this one among them."
        )
    if not 0 <= process_id < num_processes:
        raise ConfigurationError(
            f"{process_id} is no number of one of {num_processes} processes: those are "
            f"0 to {num_processes - 1}."
        )


def split(address: str) -> tuple[str, str]:
    """Host and port of an address; that of IPv6 may stand in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def check_free(coordinator: str) -> None:
    """See at process 0 that its port can be listened at.

    Args:
        coordinator: ``HOST:PORT`` of process 0.

    Raises:
        ConfigurationError: another program has it, or this one has no right to it.
    """
    # Where JAX listens.
    bind_address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    host, port = split(bind_address or f"[::]:{split(coordinator)[1]}")
    try:
        _bind(host, int(port))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"Process 0 cannot listen at port {port} of its host ({reason}). Choose "
            "another port for all processes, or end what uses it."
        ) from error


def _bind(host: str, port: int) -> None:
    """Take a port, and give it back; nobody can connect meanwhile."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if host == "::" and not socket.has_dualstack_ipv6():
        host, family = "0.0.0.0", socket.AF_INET
    with socket.socket(family) as server:
        # Else connections that have just ended would keep it from the next run.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((host, port))


def wait_for_coordinator(coordinator: str) -> None:
    """Wait until process 0 can be connected to.

    Args:
        coordinator: ``HOST:PORT`` of process 0.

    Raises:
        ConfigurationError: it does not answer for `JOINING` seconds.
    """
    host, port = split(coordinator)
    deadline, reason = time.monotonic() + JOIN_TIMEOUT, ""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, int(port)), timeout=5):
                return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(PAUSE)
    raise ConfigurationError(
        f"Process 0 did not answer at {coordinator} for {JOIN_TIMEOUT:.0f} s "
        f"({reason}). Check that it runs, that the address is its own and that the "
        "port is open."
    )
