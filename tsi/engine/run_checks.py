"""Checks of the arguments of a run, before anything is computed."""

from typing import Any

import numpy as np

from tsi.decoding.truncation import Truncation
from tsi.errors import ConfigurationError
from tsi.explorer import Explorer
from tsi.rewards.text_reader import TextReader
from tsi.sampler import Sampler


def check_method(sampler: Any) -> None:
    """Refuse a method that is neither a sampler nor an explorer, such as a constructor.

    Raises:
        ConfigurationError: see above.
    """
    if isinstance(sampler, Sampler | Explorer):
        return
    name = getattr(sampler, "__name__", None)
    hint = f"; call it: {name}()" if callable(sampler) and name else ""
    raise ConfigurationError(
        f"The engine runs a Sampler or an Explorer, and was given "
        f"{name or repr(sampler)}{hint}."
    )


def check_num_particles(num_particles: Any) -> None:
    """Refuse a number of particles that is not a positive integer.

    Raises:
        ConfigurationError: see above.
    """
    if not isinstance(num_particles, int | np.integer) or num_particles < 1:
        raise ConfigurationError(
            f"A run needs at least one particle, and num_particles is "
            f"{num_particles!r}."
        )


def check_offload(reward: Any) -> None:
    """Refuse to offload weights if no reward model has its own programs.

    Raises:
        ConfigurationError: see above.
    """
    if isinstance(reward, TextReader):
        return
    raise ConfigurationError(
        "Weights are offloaded in favour of a reward model that reads rendered text, "
        f"and the reward is a {type(reward).__name__}, which has no model or reads in "
        "the policy's own programs. Leave out offload_weights (--offload-weights)."
    )


def truncation_in_effect(truncation: Truncation | None) -> Truncation | None:
    """A truncation as arrays; None if it keeps every token.

    Raises:
        ConfigurationError: it is invalid, see `Truncation.check`.
    """
    if truncation is None:
        return None
    truncation.check()
    truncation = truncation.as_arrays()
    return None if truncation == Truncation() else truncation
