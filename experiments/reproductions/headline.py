"""On hard problems the particle filter and the best search differ, at one temperature.

Claim under test: on problems where samples are mostly wrong, resampling by the reward
beats searches that keep the best prefixes. The tasks are the longest chains and the
Countdown problems of four numbers. The temperature of each method is the better of 0.4
and 1 on validation problems (`tuned_temperature`).
Expected: not published; the paired difference is reported whatever it is.
Cost: 8 minutes on 2 cores.
Command: tsi reproduce headline
"""

from tsi.experiments.reproductions.published_models import embedded

METHODS = ("weighted_best_of_n", "dvts", "rebase", "particle_filter", "smc")
TASKS = ("chain_long", "countdown_four")
SMALL = [
    embedded(
        f"{task}-t{temperature}",
        task,
        methods=METHODS,
        temperature=temperature,
        num_problems=420,
    )
    for task in TASKS
    for temperature in (0.4, 1.0)
]
FULL = SMALL
