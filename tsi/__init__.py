"""Probabilistic inference-time scaling.

A reasoning process is a Feynman-Kac model, and every way of spending more compute at
inference time is a sampler of it. Experiments import from here, and from
`tsi.samplers`, `tsi.targets`, `tsi.rewards` and `tsi.experiments`; ``docs/design.md``
lists the names under *Public names*. A module is imported when one of its names is
first used.
"""

from typing import TYPE_CHECKING

from tsi.public_names import lazy_names

if TYPE_CHECKING:
    from tsi import (
        accuracy,
        bench,
        errors,
        experiments,
        models,
        numpyro,
        rewards,
        samplers,
        serving,
        targets,
        twists,
        weights,
    )
    from tsi.batch import batch
    from tsi.bench.conformance import check_sampler
    from tsi.bench.target_check import check_target
    from tsi.decoding.forced_end import ForcedEnd
    from tsi.decoding.truncation import Truncation
    from tsi.engine.assembly import reasoning_engine
    from tsi.engine.engine import Engine
    from tsi.errors import TsiError
    from tsi.ess import ess
    from tsi.explore import explore
    from tsi.explorer import (
        Explorer,
        ExplorerInfo,
        Plan,
        Reply,
        Request,
        undefined_ess,
    )
    from tsi.loading.named_reward import LoadedReward, load_reward
    from tsi.loading.policy import Policy, load_policy
    from tsi.models.partition import make_mesh
    from tsi.picklable import picklable
    from tsi.problem import Problem
    from tsi.reasoning.limits import SolutionLimits
    from tsi.reasoning.target import ReasoningTarget
    from tsi.results.answers import extract_answer
    from tsi.results.result import Result
    from tsi.run import Run, run
    from tsi.sampler import Sampler
    from tsi.target import Target, where_rows
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "tsi.picklable": ("picklable",),
            "tsi.results.answers": ("extract_answer",),
            "tsi.batch": ("batch",),
            "tsi.bench.conformance": ("check_sampler",),
            "tsi.bench.target_check": ("check_target",),
            "tsi.decoding.forced_end": ("ForcedEnd",),
            "tsi.decoding.truncation": ("Truncation",),
            "tsi.engine.assembly": ("reasoning_engine",),
            "tsi.engine.engine": ("Engine",),
            "tsi.errors": ("TsiError",),
            "tsi.ess": ("ess",),
            "tsi.explore": ("explore",),
            "tsi.explorer": (
                "Explorer",
                "ExplorerInfo",
                "Plan",
                "Reply",
                "Request",
                "undefined_ess",
            ),
            "tsi.loading.named_reward": ("LoadedReward", "load_reward"),
            "tsi.loading.policy": ("Policy", "load_policy"),
            "tsi.models.partition": ("make_mesh",),
            "tsi.problem": ("Problem",),
            "tsi.reasoning.limits": ("SolutionLimits",),
            "tsi.reasoning.target": ("ReasoningTarget",),
            "tsi.results.result": ("Result",),
            "tsi.run": ("Run", "run"),
            "tsi.sampler": ("Sampler",),
            "tsi.target": ("Target", "where_rows"),
        },
        (
            "accuracy",
            "bench",
            "errors",
            "experiments",
            "models",
            "numpyro",
            "rewards",
            "samplers",
            "serving",
            "targets",
            "twists",
            "weights",
        ),
    )

__all__ = [
    "Engine",
    "Explorer",
    "ExplorerInfo",
    "ForcedEnd",
    "LoadedReward",
    "Plan",
    "Policy",
    "Problem",
    "ReasoningTarget",
    "Reply",
    "Request",
    "Result",
    "Run",
    "Sampler",
    "SolutionLimits",
    "Target",
    "Truncation",
    "TsiError",
    "accuracy",
    "batch",
    "bench",
    "check_sampler",
    "check_target",
    "errors",
    "ess",
    "experiments",
    "explore",
    "extract_answer",
    "load_policy",
    "load_reward",
    "make_mesh",
    "models",
    "numpyro",
    "picklable",
    "reasoning_engine",
    "rewards",
    "run",
    "samplers",
    "serving",
    "targets",
    "twists",
    "undefined_ess",
    "weights",
    "where_rows",
]
