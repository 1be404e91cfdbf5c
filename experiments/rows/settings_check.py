"""Whether a file of rows may be continued: its settings against those of a run.

There are three kinds of settings. If they differ:

- what decides a row, such as a temperature: another value is refused;
- versions of software, the kind of device, and the address and version of a server,
  which change the last digits: refused unless the user says to continue anyway, and
  every row names its own;
- the package's own code and commit, and whether a server was measured to repeat its
  samples: said on standard error, and recorded.

A model is known by the hash of its files, so it may be at another path. One behind a
server is known by its name there.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tsi.errors import ResultsError
from tsi.experiments.files.places import Place
from tsi.experiments.rows.row_format import Line, as_json

ENVIRONMENT = frozenset(
    {
        *("tsi", "jax", "platform", "device_kind"),
        *("server", "server_address", "reward_address"),
    }
)
"""Versions, devices and servers; rows of earlier versions lack some of them."""

RECORDED = frozenset({"commit", "code", "server_seeds"})
"""Recorded, but may change before a run is resumed."""


class SettingsCheck:
    """The settings of a run, which those of rows are compared with.

    Args:
        settings: on which every row depends; JSON types only.
        method_settings: further settings of each method.
        continue_anyway: accept other versions, devices and servers.

    Raises:
        ConfigurationError: the settings are not JSON.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        method_settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        continue_anyway: bool = False,
    ) -> None:
        self._settings = as_json(dict(settings))
        self._method_settings = method_settings or {}
        as_json(dict(self._method_settings))  # refuses settings that are not JSON
        self._continue_anyway = continue_anyway
        self._accepted: set[tuple[str, str]] = set()
        self._others: Counter[str] = Counter()
        self._remarks: dict[str, str] = {}

    def settings_of(self, method: str) -> dict[str, Any]:
        """The settings of a method's rows."""
        return self._settings | as_json(self._method_settings.get(method, {}))

    def check(self, path: Place, line: Line) -> None:
        """Compare the settings of a row.

        Raises:
            ResultsError: the run may not continue a file with this row.
        """
        key = line.settings_id, line.cell.method
        if key not in self._accepted:
            self._compare(path, line)
            self._accepted.add(key)
        if line.settings_id in self._remarks:
            self._others[line.settings_id] += 1

    def print_remarks(self, path: Place) -> None:
        """Print once what differs in rows that are kept."""
        counts: Counter[str] = Counter()
        for name, number in self._others.items():
            counts[self._remarks[name]] += number
        for remark, number in counts.items():
            print(
                f"{path}: {number} rows were made with other software: {remark}. They "
                "are kept, and every row records its own.",
                file=sys.stderr,
            )
        self._others.clear()

    def _compare(self, path: Place, line: Line) -> None:
        expected, recorded = self.settings_of(line.cell.method), line.settings
        names = differing_names(expected, recorded)
        deciding = [name for name in names if name not in ENVIRONMENT | RECORDED]
        if deciding:
            raise ResultsError(
                f"{path}, line {line.number}, was made with other settings: "
                f"{describe(deciding, expected, recorded)}. Choose another "
                "output folder or the same settings."
            )
        environment = [name for name in names if name in ENVIRONMENT]
        if environment and not self._continue_anyway:
            raise ResultsError(
                f"{path}, line {line.number}, was made with other versions, or on "
                "another device or server: "
                f"{describe(environment, expected, recorded)}. The "
                "last digits of its rows may differ from those of new rows. Choose "
                "another output folder, or continue this one with --continue-anyway "
                "(continue_anyway=True); every row records its own."
            )
        reported_names = [name for name in names if name != "commit"]
        if reported_names:
            self._remarks[line.settings_id] = describe(
                reported_names, expected, recorded
            )


def differing_names(expected: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """The names of the settings that differ, in order."""
    return [
        name
        for name in sorted(expected.keys() | recorded.keys())
        if not _is_equal_setting(name, expected, recorded)
    ]


def describe(
    names: list[str], expected: dict[str, Any], recorded: dict[str, Any]
) -> str:
    """A text for each setting of these names."""
    return "; ".join(
        f"{name} is {recorded.get(name, 'absent')!r} there, "
        f"{expected.get(name, 'absent')!r} now"
        for name in names
    )


def _is_equal_setting(
    name: str, expected: dict[str, Any], recorded: dict[str, Any]
) -> bool:
    if name in ENVIRONMENT | RECORDED and not (name in expected and name in recorded):
        return True
    expected_value, recorded_value = (
        expected.get(name, "absent"),
        recorded.get(name, "absent"),
    )
    if expected_value == recorded_value:
        return True
    digest = f"{name}_sha256"
    is_same_model = expected.get(digest) == recorded.get(digest) is not None
    if not (
        is_same_model
        and isinstance(expected_value, str)
        and isinstance(recorded_value, str)
    ):
        return False
    # As in value:PATH, where the kind of reward is before the path.
    return _kind(expected_value) == _kind(recorded_value)


def _kind(name: str) -> str:
    return name.rpartition(":")[0]
