"""Checks of the address of process 0, before JAX uses it.

JAX aborts the program in C++ if a port cannot be used or process 0 does not answer, and
waits in functions that signals do not interrupt.
"""

import os
import socket
import time

from tsi.errors import ConfigurationError

JOIN_TIMEOUT = 300.0
"""Seconds within which process 0 must answer at the start, as in JAX."""
PAUSE = 0.1
"""Seconds between two attempts to connect."""
MAX_PORT = 65535
"""The largest port."""


def check_parts(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Refuse an address, number or index of processes that is missing or invalid.

    Args:
        coordinator: ``HOST:PORT`` of process 0; None, as the others, if the cluster is
            detected.
        num_processes: number of processes.
        process_id: index of this process, from 0.

    Raises:
        ConfigurationError: an argument is missing or invalid.
    """
    if coordinator is None and num_processes is None and process_id is None:
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigurationError(
            "If no cluster is detected, --coordinator (HOST:PORT of process 0), "
            "--num-processes and --process-id (from 0) are needed; one of the three is "
            "missing."
        )
    host, port = split(coordinator)
    if not host or not (port.isascii() and port.isdigit()):
        raise ConfigurationError(
            f"The coordinator {coordinator!r} is not HOST:PORT, the address of process "
            "0 with a free port of its host."
        )
    if not 1 <= int(port) <= MAX_PORT:
        raise ConfigurationError(
            f"The coordinator {coordinator!r} has no valid port: ports are 1 to "
            f"{MAX_PORT}."
        )
    if num_processes < 1:
        raise ConfigurationError(
            f"There cannot be {num_processes} processes; give the number of all "
            "processes, including this one."
        )
    if not 0 <= process_id < num_processes:
        raise ConfigurationError(
            f"{process_id} is not an index of {num_processes} processes: indices are "
            f"0 to {num_processes - 1}."
        )


def split(address: str) -> tuple[str, str]:
    """Host and port of an address; an IPv6 host may be in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def check_free(coordinator: str) -> None:
    """Check in process 0 that it can listen at its port.

    Args:
        coordinator: ``HOST:PORT`` of process 0.

    Raises:
        ConfigurationError: another program uses the port, or it is not permitted.
    """
    # The address at which JAX listens.
    bind_address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    host, port = split(bind_address or f"[::]:{split(coordinator)[1]}")
    try:
        _bind(host, int(port))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"Process 0 cannot listen at port {port} of its host ({reason}). Choose "
            "another port for all processes, or end the program that uses it."
        ) from error


def _bind(host: str, port: int) -> None:
    """Bind a port and release it, without accepting connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if host == "::" and not socket.has_dualstack_ipv6():
        host, family = "0.0.0.0", socket.AF_INET
    with socket.socket(family) as server:
        # Otherwise connections that have just ended would block the port.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((host, port))


def wait_for_coordinator(coordinator: str) -> None:
    """Wait until process 0 accepts connections.

    Args:
        coordinator: ``HOST:PORT`` of process 0.

    Raises:
        ConfigurationError: it does not answer for `JOIN_TIMEOUT` seconds.
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
