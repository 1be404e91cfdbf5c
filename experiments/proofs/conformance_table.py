"""The conformance table: the results of the bench for every sampler.

Claim: every sampler that states a target passes on the targets of `tsi.bench.suite`.
Expected: |z| < 4 and p > 0.0001 everywhere. Cost: up to an hour on a shared core.
Command: ``python -m tsi.experiments.proofs.conformance_table``. Each row is written
when it is complete, and the command continues where it stopped, if the code is still
the same.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import tyro

from tsi.bench.conformance import check_sampler
from tsi.bench.robustness import Check
from tsi.experiments.command import exit_code
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.proofs.claims import CLAIMS, Claim
from tsi.experiments.reports.report import markdown
from tsi.experiments.worlds.provenance import versions
from tsi.models.files import check_writable, write_text

SHORT = {
    "smooth": "smooth",
    "peaked": "peaked",
    "impossible prefixes": "impossible",
    "unequal lengths": "lengths",
    "linear-Gaussian": "Gaussian",
    "invalid potentials": "invalid",
    "long": "long",
    "wide": "wide",
    "long, unequal lengths": "long lengths",
}


def check_claim(name: str, claim: Claim, num_runs: int) -> dict[str, Any]:
    """Check one sampler; its row has z and p on each target, and the other checks."""
    start = time.perf_counter()
    report = check_sampler(
        claim.make, num_particles=claim.num_particles, num_runs=num_runs
    )
    numbers = {check.promise: _number(check) for check in report.checks}
    others = [
        check
        for check in report.checks
        if not check.promise.startswith(("evidence", "posterior", "target", "pooled"))
        and check.passed is not None
    ]
    return {
        "sampler": name,
        "target": claim.target,
        "num_particles": claim.num_particles,
        "runs": num_runs,
        "numbers": {k: v for k, v in numbers.items() if v is not None},
        "others_kept": sum(check.passed is True for check in others),
        "others": len(others),
        "passed": report.passed,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _number(check: Check) -> float | None:
    """The z score or p value in the detail of a check."""
    match = re.search(r"(?:z|p) = ([-+.\deinf]+)", check.detail)
    return float(match.group(1)) if match and check.passed is not None else None


def format_table(rows: list[dict[str, Any]]) -> str:
    """One line per sampler. A dash is a target or number that is not known."""
    header = ["sampler", "target", "exact"]
    header += [f"z, {short}" for short in SHORT.values()]
    header += ["z, pooled", "least p", "others kept", "runs", "s"]
    lines = [header]
    for row in rows:
        numbers = row["numbers"]
        scores = [numbers.get(f"evidence, {name}") for name in SHORT]
        scores.append(numbers.get("pooled"))
        p_values = [v for k, v in numbers.items() if k.startswith("posterior")]
        claims = row["target"] != "none"
        verdict = "yes" if row["passed"] else "NO"
        lines.append(
            [
                row["sampler"],
                row["target"],
                verdict if claims else "-" if row["passed"] else "BROKEN",
                *["-" if z is None else f"{z:+.2f}" for z in scores],
                f"{min(p_values):.3g}" if p_values else "-",
                f"{row['others_kept']}/{row['others']}",
                str(row["runs"]),
                f"{row['seconds']:.0f}",
            ]
        )
    return markdown(lines)


def main(out: Path = Path("results/conformance"), num_runs: int = 20_000) -> None:
    """Check every sampler and write the table.

    Args:
        out: folder of rows.jsonl and table.md.
        num_runs: number of runs per target.
    """
    check_writable(out / "table.md")
    with AppendOnlyFile(out / "rows.jsonl") as file:
        settings = {"runs": num_runs, "code": versions()["code"]}
        done = {
            row["sampler"]: row
            for row in map(json.loads, file.lines())
            if all(row.get(name) == value for name, value in settings.items())
        }
        for name, claim in CLAIMS.items():
            if name in done:
                continue
            done[name] = check_claim(name, claim, num_runs) | settings
            file.append(json.dumps(done[name]).encode() + b"\n")
            # The programs of forty samplers take about 3 GB.
            jax.clear_caches()
            print(f"{name}: {'passed' if done[name]['passed'] else 'BROKEN'}")
    text = format_table([done[name] for name in CLAIMS])
    write_text(out / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
