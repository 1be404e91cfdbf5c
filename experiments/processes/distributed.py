"""Join the processes of a run by JAX's coordination service."""

import contextlib
from collections.abc import Iterator

import jax

from tsi.errors import ConfigurationError
from tsi.experiments.processes.coordinator import (
    check_free,
    check_parts,
    wait_for_coordinator,
)
from tsi.experiments.processes.process_group import (
    ALONE,
    BEAT_TIMEOUT,
    Group,
    first_sentence,
)
from tsi.termination import raise_on_sigterm


@contextlib.contextmanager
def group_of(
    distributed: bool,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[Group]:
    """The group for the command line's options: joined processes, or only this one.

    Raises:
        ConfigurationError: the other arguments are given without `distributed`, or see
            `join_processes`.
    """
    if distributed:
        with join_processes(coordinator, num_processes, process_id) as group:
            yield group
        return
    if (coordinator, num_processes, process_id) != (None, None, None):
        raise ConfigurationError(
            "--coordinator, --num-processes and --process-id need --distributed; add "
            "it."
        )
    yield ALONE


@contextlib.contextmanager
def join_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[Group]:
    """Join the other processes of a run, before JAX computes anything.

    Args:
        coordinator: ``HOST:PORT`` of process 0. It and the other arguments may be left
            out if JAX detects the cluster (TPU pods, Slurm, Open MPI, and Kubernetes
            if jax[k8s] is installed).
        num_processes: number of processes.
        process_id: index of this process, from 0.

    Raises:
        ConfigurationError: no cluster is detected, an argument is missing or out of
            range, or the processes cannot be joined.
    """
    check_parts(coordinator, num_processes, process_id)
    is_joined = jax.distributed.is_initialized()
    if not is_joined:
        # JAX's own handler of SIGTERM would replace the one of this package.
        jax.config.update("jax_enable_preemption_service", False)
        # Otherwise the death of one process ends all others in the middle of a step.
        jax.config.update("jax_enable_recoverability", True)
        _initialize(coordinator, num_processes, process_id)
    # There is no public access to the store; Orbax takes it from here too.
    from jax._src.distributed import global_state

    group = Group(
        global_state.process_id,
        global_state.num_processes,
        global_state.client,
        BEAT_TIMEOUT,
    )
    try:
        # Also as it leaves: a request to stop is remembered within this context only.
        with raise_on_sigterm():
            try:
                yield group
            except BaseException as error:
                group.leave(error)
                reason = group.reason(error)
                if reason is error:
                    raise
                raise reason from error
            else:
                group.leave()
    finally:
        if not is_joined:
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()


def _initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    try:
        if coordinator is None:
            jax.distributed.initialize()
        else:
            if process_id:
                wait_for_coordinator(coordinator)
            else:
                check_free(coordinator)
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                cluster_detection_method="deactivate",
            )
    except (ValueError, TypeError) as error:
        if coordinator is None:
            raise ConfigurationError(
                "No cluster was detected (a TPU pod, Slurm, Open MPI, or Kubernetes "
                "with jax[k8s]): give --coordinator HOST:PORT, "
                "--num-processes and --process-id."
            ) from error
        raise ConfigurationError(
            f"The processes cannot be joined: {first_sentence(error)}"
        ) from error
    except RuntimeError as error:
        raise ConfigurationError(
            f"The processes cannot be joined: {first_sentence(error)} Check that "
            "process 0 runs, that its address is right, that its port is free and "
            "open, and that all processes were started."
        ) from error
