"""One of several processes on a world without models; see `processes.py`."""

import contextlib
import json
import sys

from fake_world import fake_world

from tsi.experiments.command import exit_code, exit_resumably
from tsi.experiments.files.places import join_place, parse_place
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.processes import distributed, process_group
from tsi.experiments.processes.distributed import join_processes
from tsi.experiments.processes.process_group import ALONE
from tsi.experiments.reports.write_report import write_report
from tsi.experiments.scaling.scale import run_plan


def main(
    out,
    index=0,
    count=1,
    address=None,
    *,
    methods=("smc", "weighted_best_of_n"),
    num_problems=12,
    max_rows=8,
    sleep=0.0,
    settings=None,
    patience=100.0,
):
    distributed.BEAT_TIMEOUT, process_group.EXIT_TIMEOUT = patience, 3.0
    group = contextlib.nullcontext(ALONE)
    if count > 1:
        group = join_processes(address, count, index) if address else join_processes()
    with exit_resumably(), group as group:
        plan = make_plan(methods, [1, 2, 4], 2)
        world, folder = (
            fake_world(num_problems, sleep, settings, rows=max_rows),
            parse_place(out),
        )
        path = join_place(folder, "rows.jsonl")
        rows = run_plan(plan, world, path, progress=False, group=group)
        if group.is_first:
            print(write_report(plan, world, rows, folder))
        group.gather("report")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(**json.loads(sys.argv[1]))))
