"""Every sampler and explorer of the package, to be tested in turn."""

from tsi import samplers
from tsi.explorer import Explorer
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import product


def all_samplers():
    """Every sampler of the package by name, as its constructor makes it."""
    for name in sorted(set(samplers.__all__)):
        for arguments in ((), (product(),), (4,), (samplers.multinomial,)):
            try:
                value = getattr(samplers, name)(*arguments)
            except Exception:
                continue
            if isinstance(value, Sampler | Explorer):
                yield name, value
                break
