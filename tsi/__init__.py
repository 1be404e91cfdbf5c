"""Probabilistic inference-time scaling.

A reasoning process is a Feynman-Kac model, and every way of spending more compute at
inference time is a sampler of it. This module exports the core: the driver `run`, the
two contracts `Sampler` and `Target`, and `batch`; samplers live in `tsi.samplers`.
"""

from tsi.batch import batch
from tsi.run import Run, run
from tsi.sampler import Sampler
from tsi.target import Target

__all__ = ["Run", "Sampler", "Target", "batch", "run"]
