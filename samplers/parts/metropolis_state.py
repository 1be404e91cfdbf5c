"""The state of :func:`tsi.samplers.suffix_metropolis.suffix_metropolis`."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from tsi.samplers.parts.path_record import ChainSample, PathRecord


class Blocks(NamedTuple):
    """Power sampling as published: prefixes in turn, with equal numbers of moves.

    Attributes:
        steps: B, the length of a block.
        released: whether to follow the released code instead of the printed algorithm.
    """

    steps: int
    released: bool = False


class MetropolisState(NamedTuple):
    """Chains and their proposals.

    Attributes:
        done: whether the budget is spent.
        members: stored prefixes that are samples, [K].
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: log of the mean initial weight.
        iteration: number of completed moves.
        moves: number of moves per stage.
        stage: which block of the path is being sampled.
        growing: whether the current paths are being extended to the stage's length.
        limits: number of steps to which they are extended, [C].
        stopped: chains that have stopped before the others, [C].
        slots: slot of each chain's current path, [C].
        current: numbers of the current paths.
        ended: whether the current path is a complete solution, [C].
        cut: number of steps that the proposal keeps, [C].
        proposal: numbers of the proposals so far.
        ending: whether the proposal is a complete solution, [C].
        waiting: which proposals are complete, [C].
        accepted: number of accepted moves of all chains, including moves with a cut
            beyond the end, which change nothing.
        sample: summary of the current states, without the axis C if there is one chain.
    """

    done: Bool[Array, ""]
    members: Int[Array, "K"]
    log_weights: Float[Array, "K"]
    log_potentials: Float[Array, "K"]
    finished: Bool[Array, "K"]
    log_evidence: Float[Array, ""]
    iteration: Int[Array, ""]
    moves: Int[Array, ""]
    stage: Int[Array, ""]
    growing: Bool[Array, ""]
    limits: Int[Array, "C"]
    stopped: Bool[Array, "C"]
    slots: Int[Array, "C"]
    current: PathRecord
    ended: Bool[Array, "C"]
    cut: Int[Array, "C"]
    proposal: PathRecord
    ending: Bool[Array, "C"]
    waiting: Bool[Array, "C"]
    accepted: Int[Array, ""]
    sample: ChainSample
