"""Experiments: tasks with their models, plans, rows and reports.

A module is imported when the first of its names is used, because the command line is in
this package and answers ``tsi --help`` without JAX.
"""

from typing import TYPE_CHECKING

from tsi.public_names import lazy_names

if TYPE_CHECKING:
    from tsi.experiments.experiment import Experiment
    from tsi.experiments.files.places import join_place, parse_place
    from tsi.experiments.grading.grader import get_grader
    from tsi.experiments.grading.pool import GradingPool
    from tsi.experiments.model_options import ModelOptions
    from tsi.experiments.plans.methods import METHODS
    from tsi.experiments.plans.plan import ExperimentPlan, make_plan
    from tsi.experiments.problem_options import ProblemOptions
    from tsi.experiments.processes.distributed import join_processes
    from tsi.experiments.reports.to_pandas import to_frame
    from tsi.experiments.reports.write_report import write_report
    from tsi.experiments.rows.particle_files import read_particles
    from tsi.experiments.rows.results import read_rows
    from tsi.experiments.scaling.scale import run_plan
    from tsi.experiments.tasks import (
        TASKS,
        GeneratedTask,
        PromptFormat,
        Task,
        get_task,
    )
    from tsi.experiments.worlds.embedded_world import embedded_world
    from tsi.experiments.worlds.step_ends import StepEnds
    from tsi.experiments.worlds.world import World, task_limits, task_world
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "tsi.experiments.grading.pool": ("GradingPool",),
            "tsi.experiments.grading.grader": ("get_grader",),
            "tsi.experiments.experiment": ("Experiment",),
            "tsi.experiments.model_options": ("ModelOptions",),
            "tsi.experiments.problem_options": ("ProblemOptions",),
            "tsi.experiments.files.places": ("join_place", "parse_place"),
            "tsi.experiments.processes.distributed": ("join_processes",),
            "tsi.experiments.plans.methods": ("METHODS",),
            "tsi.experiments.rows.particle_files": ("read_particles",),
            "tsi.experiments.plans.plan": ("ExperimentPlan", "make_plan"),
            "tsi.experiments.rows.results": ("read_rows",),
            "tsi.experiments.scaling.scale": ("run_plan",),
            "tsi.experiments.reports.to_pandas": ("to_frame",),
            "tsi.experiments.reports.write_report": ("write_report",),
            "tsi.experiments.tasks": (
                "TASKS",
                "GeneratedTask",
                "PromptFormat",
                "Task",
                "get_task",
            ),
            "tsi.experiments.worlds.embedded_world": ("embedded_world",),
            "tsi.experiments.worlds.step_ends": ("StepEnds",),
            "tsi.experiments.worlds.world": ("World", "task_limits", "task_world"),
        },
    )

__all__ = [
    "METHODS",
    "TASKS",
    "Experiment",
    "ExperimentPlan",
    "GeneratedTask",
    "GradingPool",
    "ModelOptions",
    "ProblemOptions",
    "PromptFormat",
    "StepEnds",
    "Task",
    "World",
    "embedded_world",
    "get_grader",
    "get_task",
    "join_place",
    "join_processes",
    "make_plan",
    "parse_place",
    "read_particles",
    "read_rows",
    "run_plan",
    "task_limits",
    "task_world",
    "to_frame",
    "write_report",
]
