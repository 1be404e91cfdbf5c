"""What docs/distributed.md shows can be run, and names the codes that there are."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_world import fake_world

from tsi import experiments
from tsi.experiments.processes import distributed
from tsi.experiments.processes.process_group import ALONE
from tsi.experiments.rows.results import read_rows

TEXT = (Path(__file__).parent.parent / "docs" / "distributed.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.long
def test_the_program_can_be_run_as_it_stands(monkeypatch, tmp_path, capsys):
    joined = []

    @contextlib.contextmanager
    def join_processes(*arguments):
        joined.append(arguments)
        yield ALONE

    monkeypatch.setattr(experiments, "join_processes", join_processes)
    monkeypatch.setattr(
        experiments, "embedded_world", lambda task, count: fake_world(3)
    )
    monkeypatch.setattr(sys, "argv", ["run.py", "2"])
    (program,) = blocks("python")
    place = f'"{tmp_path}"'
    assert '"/shared/run"' in program
    exec(compile(program.replace('"/shared/run"', place), "docs", "exec"), {})
    assert joined == [("10.0.0.1:1234", 4, 2)]
    assert len(read_rows(tmp_path / "rows.jsonl")) == 2 * 3 * 3
    assert "Written: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, None, False),
        (2, None, False),
        (os.EX_TEMPFAIL, None, True),
        (128 + signal.SIGKILL, "3", True),
        (128 + signal.SIGABRT, None, True),
        (128 + signal.SIGTERM, None, True),
        (os.EX_TEMPFAIL, "10", False),
    ],
)
def test_the_script_for_slurm_requeues_what_goes_on(tmp_path, code, restarts, requeued):
    (script,) = blocks("bash")
    for name, body in {
        "srun": f"exit {code}",
        "scontrol": f'echo "$@" > {tmp_path}/said',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    if restarts is not None:
        variables["SLURM_RESTART_COUNT"] = restarts
    done = subprocess.run(["bash", "-c", script], env=variables, check=False)
    assert done.returncode == code
    said = tmp_path / "said"
    assert (said.read_text() if said.exists() else "") == (
        "requeue 17\n" if requeued else ""
    )


def test_kubernetes_is_named_with_what_it_needs(capsys):
    from tsi.experiments.cli import main

    with pytest.raises(SystemExit):
        main(["scale", "--help"])
    told = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for text in (told, distributed.join_processes.__doc__, " ".join(TEXT.split())):
        assert "Kubernetes" in text
        assert "jax[k8s]" in text
