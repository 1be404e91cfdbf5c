"""A training loop with AdamW and checkpoints, which gives the same weights if resumed.

The batch of a step is a pure function of (seed, step), so a checkpoint consists of the
weights, the optimiser's state and the step number. A run that is killed and resumed
repeats and skips no batch, and on the same machine its weights are bitwise equal to
those of a run without interruption.

References:
    AdamW: Loshchilov and Hutter 2019, arXiv 1711.05101; cosine schedule: arXiv
    1608.03983.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array
from tqdm import tqdm

from tsi.errors import CheckpointError

Model = TypeVar("Model", bound=nnx.Module)
Batch = Any


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Number of steps, learning rates and batch size.

    Attributes:
        steps: length of the schedule, at which the decay of the learning rate ends.
        peak: highest learning rate.
        warmup: steps of linear warm-up before the cosine decay to a twentieth.
        batch: sequences per step.
        weight_decay: of AdamW; 0 if some weights are frozen.
        checkpoint_every: steps between checkpoints.
    """

    steps: int
    peak: float
    batch: int
    warmup: int = 100
    weight_decay: float = 0.01
    checkpoint_every: int = 100

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW with clipped gradients and this schedule."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.peak, self.warmup, self.steps, self.peak / 20
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(rate, b2=0.98, weight_decay=self.weight_decay),
        )


def fit(
    model: Model,
    loss: Callable[[Model, Batch], jax.Array],
    batch_at: Callable[[int], Batch],
    schedule: Schedule,
    folder: Path,
    *,
    until: int | None = None,
    label: str = "training",
    after_step: Callable[[int], None] | None = None,
) -> Model:
    """Train from the newest checkpoint in ``folder``, or from ``model``'s own weights.

    Args:
        model: the initial weights, which are not changed.
        loss: ``(model, batch) -> scalar``.
        batch_at: ``(step) -> batch``, a pure function.
        schedule: optimiser, lengths and batch size.
        folder: of checkpoints; created if it does not exist.
        until: stop after this step of the schedule; at its end, if None. A later call
            with a larger number continues from there.
        label: shown before the progress bar.
        after_step: called with the number of finished steps.

    Returns:
        A model with the weights after step ``until``.

    Raises:
        CheckpointError: the folder's newest checkpoint is beyond ``until``, or is of
            another model.
    """
    until = schedule.steps if until is None else until
    optimiser = schedule.optimiser()
    graph, weights = nnx.split(model)
    carry = (weights, optimiser.init(weights))

    @jax.jit
    def advance(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], Array]:
        weights, moments = carry
        value, slopes = jax.value_and_grad(lambda w: loss(nnx.merge(graph, w), batch))(
            weights
        )
        updates, moments = optimiser.update(slopes, moments, weights)
        return (optax.apply_updates(weights, updates), moments), value

    # Orbax writes a checkpoint to a temporary folder and renames it, so that a kill
    # does not leave an incomplete one.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, save_interval_steps=1, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(folder.absolute(), options=options) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start > until:
            raise CheckpointError(
                f"{folder} already holds step {start}, beyond the requested {until}; "
                "remove the folder to train from the beginning."
            )
        if start:
            carry = _restore(checkpoints, start, carry, folder)
        losses: list[Any] = []
        with tqdm(range(start, until), label, initial=start, total=until) as bar:
            for step in bar:
                carry, value = advance(carry, batch_at(step))
                losses.append(value)
                num_done = step + 1
                if num_done % 20 == 0 or num_done == until:
                    bar.set_postfix(loss=f"{np.mean(losses):.4f}")
                    losses = []
                if num_done % schedule.checkpoint_every == 0 or num_done == until:
                    checkpoints.save(num_done, args=_save_arguments(carry))
                if after_step is not None:
                    after_step(num_done)
        checkpoints.wait_until_finished()
    return nnx.merge(graph, carry[0])


def _leaves(carry: Any) -> dict[str, Any]:
    """The carry as a flat dictionary, which all versions of Orbax can read."""
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(carry))}


def _save_arguments(carry: Any) -> ocp.args.CheckpointArgs:
    return ocp.args.StandardSave(_leaves(carry))


def _restore(
    checkpoints: ocp.CheckpointManager, step: int, carry: Any, folder: Path
) -> Any:
    expected = jax.tree.map(ocp.utils.to_shape_dtype_struct, _leaves(carry))
    try:
        leaves = checkpoints.restore(step, args=ocp.args.StandardRestore(expected))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise CheckpointError(
            f"The checkpoint of step {step} in {folder} does not fit this model: "
            f"{error}. Remove the folder to train from the beginning."
        ) from error
    structure = jax.tree.structure(carry)
    return jax.tree.unflatten(structure, [leaves[str(i)] for i in range(len(leaves))])
