"""numpyro programs as targets, and this package's samplers as numpyro kernels."""

from tsi.numpyro.arguments import ModelArguments
from tsi.numpyro.explorer_kernel import ExplorerKernel, KernelState
from tsi.numpyro.particles import ProgramParticles, ProgramStep
from tsi.numpyro.pmmh import PMMH, PMMHState
from tsi.numpyro.program import ProgramTarget, program_target
from tsi.numpyro.token_step import TokenStep, append_step

__all__ = [
    "PMMH",
    "ExplorerKernel",
    "KernelState",
    "ModelArguments",
    "PMMHState",
    "ProgramParticles",
    "ProgramStep",
    "ProgramTarget",
    "TokenStep",
    "append_step",
    "program_target",
]
