"""The loop over problems stops when it is asked to, whatever its samplers do."""

import threading

import numpy as np

from tsi.engine.problem_loop import ProblemLoop


class Repeating(ProblemLoop):
    """One problem whose sampler decides again and again without other work."""

    def __init__(self, stop, num_decisions):
        self.population = self
        self.places, self.is_ready = 1, np.array([True])
        self.occupancy = np.array([True])
        self.failed, self.num_decided, self.num_worked = [], 0, 0
        self._stop, self._last = stop, num_decisions

    def _decide(self, ready):
        self.num_decided += 1
        assert self.num_decided <= self._last
        if self.num_decided == self._last:
            self._stop.set()
        yield from ()

    def _work(self):
        self.num_worked += 1
        return True

    _enter = _keep = _extend = _reader = _free = None


def test_a_signal_ends_turns_that_only_repeat_steps():
    stop = threading.Event()
    loop = Repeating(stop, 3)
    assert list(loop.run([], stop)) == []
    assert loop.num_decided == 3
    assert loop.num_worked == 0
