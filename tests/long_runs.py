"""Programs that run for longer than they compile, unlike most of the suite's."""

from collections.abc import Callable

import jax

OPTIMISED = {"xla_backend_optimization_level": 1}
"""The optimisations of LLVM that the suite leaves out: a program takes two to three
times as long to compile, and runs three to six times as fast."""


def jit_optimised(function: Callable, **settings) -> Callable:
    """`jax.jit` with these optimisations."""
    return jax.jit(function, compiler_options=OPTIMISED, **settings)
