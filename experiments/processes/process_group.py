"""Several processes, on one or several hosts, that divide the problems of one run.

Each process has its own devices. If a model fits on them, each process has its own
models too, computes its share of the problems, and writes its own rows
(`rows/row_shards.py`). If a model needs the devices of several processes, these compute
the same problems together, and the first of them writes the rows. Processes
communicate through the key-value
store of JAX's coordination service, which process 0 serves: that they were started with
the same arguments, that they are alive, and how each of them has ended. Collectives of
devices would hang or reach their time limit, because one process may be hours ahead of
another.

If a process other than process 0 dies or fails, the others finish their work first,
except for those with parts of the same model. If one is asked to stop, all stop.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar, runtime_checkable

from tsi.errors import ConfigurationError, LostProcessError, ProcessError, Stopped
from tsi.models.exchange import is_waiting
from tsi.models.files import format_path
from tsi.termination import is_stop_requested, stop_with_group

BEAT_INTERVAL = 1.0
"""Seconds between two heartbeats of a process."""


BEAT_TIMEOUT = 100.0
"""Seconds without a heartbeat after which a process counts as dead, as in JAX."""


EXIT_TIMEOUT = 20.0
"""Seconds that process 0 waits for the others to stop, because they end with it."""


PARTNER_TIMEOUT = 60.0
"""Seconds after which a process ends that waits for a process with a part of its model,
if that one has ended."""


PARTNER_WAIT = 5.0
"""Seconds until a process that has failed has said why."""


POLL_INTERVAL = 0.1
"""Seconds between two reads of the store."""


T = TypeVar("T")


@runtime_checkable
class Store(Protocol):
    """The part of JAX's coordination service that is used."""

    def key_value_set(
        self, key: str, value: str, allow_overwrite: bool = False
    ) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


class ProcessEnd(NamedTuple):
    """How a process has ended.

    Attributes:
        reason: a sentence; None if there was no error.
        is_stopped: whether a signal has stopped it.
        is_lost: whether another process has died, so that the command can be resumed.
    """

    reason: str | None
    is_stopped: bool
    is_lost: bool


class Group:
    """The processes of a run, and this process's index among them.

    Args:
        index: of this process, from 0.
        count: number of processes.
        store: shared by the processes; None for one process.
        beat_timeout: seconds without a heartbeat after which a process counts as dead.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        store: Store | None = None,
        beat_timeout: float = BEAT_TIMEOUT,
    ) -> None:
        self.index, self.count = index, count
        self._store, self._beat_timeout = store, beat_timeout
        self._beats: dict[int, str] = {}
        self._last_heard = dict.fromkeys(range(count), time.monotonic())
        self._first_failure: ProcessEnd | None = None
        self._calls: Counter[str] = Counter()
        self._size, self._partners = 1, set[int]()
        self._root = "tsi"
        self._left = threading.Event()
        self._watch = threading.Thread(target=self._watch_others, daemon=True)
        if store is not None:
            self._root = f"tsi/{self._count_groups()}"
            self._watch.start()

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which reports."""
        return self.index == 0

    def hold_together(self, processes_per_model: int) -> None:
        """Let groups of consecutive processes hold one model each and share its work.

        Raises:
            ConfigurationError: the number of processes is not a multiple of it.
        """
        size = processes_per_model
        if self.count % size:
            raise ConfigurationError(
                f"{self.count} processes cannot hold models of {size} processes each; "
                f"start a multiple of {size}."
            )
        first = self.index // size * size
        self._size = size
        self._partners = {*range(first, first + size)} - {self.index}

    @property
    def writes(self) -> bool:
        """Whether this process writes rows: the first of those that hold its model."""
        return self.index % self._size == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items of this process's model; every item is in the share of one."""
        return list(items[self.index // self._size :: self.count // self._size])

    def gather(self, name: str, text: str = "") -> list[str]:
        """Wait for the texts of all processes, and return them in order.

        If a process other than process 0 has died or failed, this waits until the
        others have given their texts or ended, and then raises.

        Args:
            name: of what is gathered. The n-th call with a name gathers the texts of
                the n-th calls with this name in all processes.
            text: of this process.

        Raises:
            ProcessError: the remaining processes have ended, and some have failed.
            LostProcessError: the remaining processes have died.
            Stopped: a signal has stopped one of them.
        """
        if self._store is None:
            return [text]
        key = f"{name}/{self._calls[name]}"
        self._calls[name] += 1
        self._set(f"{key}/{self.index}", text)
        while True:
            # In this order, so that a process that has ended has also given its text.
            process_ends, texts = self._read_ends(), self._get(key)
            missing = set(range(self.count)) - texts.keys()
            if not missing:
                return [texts[i] for i in range(self.count)]
            self._check(name, missing, process_ends)
            time.sleep(POLL_INTERVAL)

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Refuse processes that were started with different arguments.

        Args:
            facts: arguments and settings of the run, of JSON types.

        Raises:
            ConfigurationError: they differ; all processes raise the same message.
        """
        digests = {name: digest(fact) for name, fact in facts.items()}
        digests_of_all = [
            json.loads(text) for text in self.gather("facts", json.dumps(digests))
        ]
        for i, other_digests in enumerate(digests_of_all):
            names = [
                name
                for name in sorted(digests_of_all[0].keys() | other_digests.keys())
                if digests_of_all[0].get(name) != other_digests.get(name)
            ]
            if names:
                raise ConfigurationError(
                    f"Process {i} was started with other arguments than process 0 "
                    f"({', '.join(names)}). Start all processes with the same command, "
                    "files and versions."
                )

    def leave(self, error: BaseException | None = None) -> None:
        """Publish how this process ends; process 0 waits until the others end too.

        Args:
            error: that ends it; None if there is none.
        """
        if self._store is None:
            return
        self._left.set()
        end = ProcessEnd(
            None if error is None else first_sentence(error),
            isinstance(error, KeyboardInterrupt),
            isinstance(error, LostProcessError),
        )
        with contextlib.suppress(Exception):
            self._set(f"ended/{self.index}", json.dumps(end))
            deadline = time.monotonic() + EXIT_TIMEOUT
            others = set(range(1, self.count)) if self.is_first else set()
            while time.monotonic() < deadline and others:
                time.sleep(POLL_INTERVAL)
                others -= self._read_ends().keys()
                others -= {
                    i for i in others if self._seconds_silent(i) > self._beat_timeout
                }

    def reason(self, error: BaseException) -> BaseException:
        """The error, or that of another process if this one ends because of it."""
        if isinstance(error, LostProcessError):
            return self._end_of_partner(error)
        if self._first_failure is None or not isinstance(error, Stopped):
            return error
        kind = LostProcessError if self._first_failure.is_lost else ProcessError
        return kind(f"Process 0 has failed: {self._first_failure.reason}")

    def _end_of_partner(self, error: LostProcessError) -> BaseException:
        """Why a process with a part of this model has ended, if it can say so."""
        deadline = time.monotonic() + PARTNER_WAIT
        while self._partners and time.monotonic() < deadline:
            for i, end in self._read_ends().items():
                if i not in self._partners or end.reason is None:
                    continue
                if end.is_stopped:
                    return Stopped(signal.SIGTERM)
                kind = LostProcessError if end.is_lost else ProcessError
                return kind(f"Process {i} has failed: {end.reason}")
            time.sleep(POLL_INTERVAL)
        return error

    # The store

    def _count_groups(self) -> int:
        """Number of earlier groups of this process in the store.

        If the user has joined the processes, the store outlives a group, and entries of
        different groups must not be confused.
        """
        number = int(self._get("groups").get(self.index, "0"))
        self._set(f"groups/{self.index}", str(number + 1))
        return number

    def _set(self, key: str, text: str) -> None:
        assert self._store is not None
        self._store.key_value_set(f"{self._root}/{key}", text, allow_overwrite=True)

    def _get(self, name: str) -> dict[int, str]:
        assert self._store is not None
        entries = self._store.key_value_dir_get(f"{self._root}/{name}/")
        return {int(key.rsplit("/", 1)[1]): text for key, text in entries}

    def _read_ends(self) -> dict[int, ProcessEnd]:
        return {i: ProcessEnd(*json.loads(x)) for i, x in self._get("ended").items()}

    # Other processes

    def _seconds_silent(self, i: int) -> float:
        return time.monotonic() - self._last_heard[i]

    def _check(
        self, name: str, missing: set[int], process_ends: Mapping[int, ProcessEnd]
    ) -> None:
        """Raise if the missing texts will not come."""
        ended_missing = {
            i: process_ends[i] for i in sorted(missing & process_ends.keys())
        }
        if any(end.is_stopped for end in ended_missing.values()):
            # Raises in the main thread, and records that this process was stopped.
            stop_with_group()
            raise Stopped(signal.SIGTERM)
        silent_missing = {
            i
            for i in missing - ended_missing.keys()
            if self._seconds_silent(i) > self._beat_timeout
        }
        if 0 not in ended_missing and missing != ended_missing.keys() | silent_missing:
            return
        sentences = [_explain_end(i, end, name) for i, end in ended_missing.items()]
        sentences += [
            f"Process {i} gave no sign of life for {self._beat_timeout:.0f} s."
            for i in sorted(silent_missing)
        ]
        if not all(end.is_lost for end in ended_missing.values()):
            raise ProcessError(" ".join(sentences))
        raise LostProcessError(
            f"{' '.join(sentences)} What was written is kept: run the same command "
            "again, with any number of processes."
        )

    def _watch_others(self) -> None:
        """Write heartbeats, and stop this process if all processes stop."""
        beat, is_stopping, lost_time = 0, False, time.monotonic()
        while not self._left.wait(BEAT_INTERVAL):
            beat += 1
            # If the service has ended, JAX ends this process.
            with contextlib.suppress(Exception):
                self._set(f"beat/{self.index}", str(beat))
                for i, heartbeat in self._get("beat").items():
                    if self._beats.get(i) != heartbeat:
                        self._beats[i], self._last_heard[i] = (
                            heartbeat,
                            time.monotonic(),
                        )
                process_ends = self._read_ends()
                partner = self._find_lost_partner(process_ends)
                is_over = partner is not None or self._is_over(process_ends)
                if is_over and not is_stopping:
                    is_stopping = True
                    self._stop_main()
                if partner is None or not is_waiting():
                    lost_time = time.monotonic()
                elif time.monotonic() - lost_time > PARTNER_TIMEOUT:
                    _exit_without(partner)

    def _find_lost_partner(self, process_ends: Mapping[int, ProcessEnd]) -> int | None:
        """A process with a part of this model that computes no more, or None."""
        for i in sorted(self._partners):
            end = process_ends.get(i)
            has_failed = end is not None and end.reason is not None
            is_silent = end is None and self._seconds_silent(i) > self._beat_timeout
            if has_failed or is_silent:
                return i
        return None

    def _is_over(self, process_ends: Mapping[int, ProcessEnd]) -> bool:
        """Whether all processes stop: one was stopped, or process 0 has failed."""
        first = process_ends.get(0)
        if first is not None and first.reason is not None and not first.is_stopped:
            if not is_stop_requested():
                self._first_failure = first
            return True
        return any(end.is_stopped for end in process_ends.values())

    def _stop_main(self) -> None:
        """Stop the main thread between two steps, unless it is already leaving."""
        if not self._left.is_set():
            stop_with_group()


ALONE = Group()
"""A single process."""


def _exit_without(partner: int) -> NoReturn:
    """End this process, whose main thread waits for the devices of another one."""
    print(
        f"tsi: Process {partner}, which had a part of this process's model, has ended. "
        "What was written is kept: run the same command again.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(os.EX_TEMPFAIL)


def digest(fact: Any) -> str:
    """A short hash of a value of JSON types."""
    text = json.dumps(fact, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _explain_end(i: int, end: ProcessEnd, name: str) -> str:
    """A sentence on how a process has ended."""
    if end.reason is None:
        return (
            f"Process {i} has ended before its {name!r}. All processes must run the "
            "same program."
        )
    return f"Process {i} has failed: {end.reason}"


def first_sentence(error: BaseException) -> str:
    """The first line of an error, as a sentence."""
    line = (str(error).splitlines() or [""])[0].strip()
    line = line or type(error).__name__
    return format_path(line if line.endswith(".") else f"{line}.")
