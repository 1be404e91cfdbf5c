"""Checks of a target's optional methods: each must agree with `propose`."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check
from tsi.bench.target_walk import Walk, Walker, agree, rows_of


def _takes_step(walk: Walk, t: int) -> np.ndarray:
    """Whether each particle took step t."""
    if t == 0:
        return np.ones(len(walk.outputs[0].finished), bool)
    return ~np.asarray(walk.outputs[t - 1].finished)


def densities_check(walker: Walker, walk: Walk) -> Check:
    """Whether corrections equal the increments of the prefixes' densities."""
    if not walker.has("log_prob"):
        if not walker.replay_refusal:
            return _check_policy_proposal(walk)
        return Check("densities", None, "the target has no log_prob")
    empty = walker.target.log_prob(walk.particles[0], walker.params)
    if not agree(empty, np.zeros(len(walk.outputs[0].finished))):
        return Check("densities", False, "log_prob of an empty prefix is not zero")
    if not walker.has("log_proposal"):
        if not walker.replay_refusal:
            return _check_policy_proposal(walk)
        return Check("densities", None, "the target has no log_proposal")
    excess = np.zeros(len(walk.outputs[0].finished))
    for t, outputs in enumerate(walk.outputs):
        difference = np.asarray(outputs.log_probs) - np.asarray(outputs.log_proposals)
        step_mask = _takes_step(walk, t)
        if not agree(
            (difference - excess)[step_mask],
            np.asarray(outputs.log_corrections)[step_mask],
        ):
            errors = np.abs(
                np.where(step_mask, difference - excess - outputs.log_corrections, 0.0)
            )
            detail = (
                f"step {t} reports log p - log q and log_prob - log_proposal gains "
                f"something else, by up to {errors.max():.3g}"
            )
            return Check("densities", False, detail)
        excess = difference
    return Check("densities", True, "log p - log q is what the densities gain")


def _check_policy_proposal(walk: Walk) -> Check:
    """Without `log_proposal`, repeated steps are weighted as if q were p."""
    largest = max(
        np.abs(np.asarray(outputs.log_corrections)[_takes_step(walk, t)]).max(
            initial=0.0
        )
        for t, outputs in enumerate(walk.outputs)
    )
    if largest > 1e-4:
        detail = (
            f"the proposal is not the policy (log p - log q of {largest:.3g}), and "
            "without log_proposal repeated steps would get wrong weights"
        )
        return Check("densities", False, detail)
    return Check("densities", True, "the proposal is the policy")


def truncate_check(walker: Walker, walk: Walk, key: Key[Array, ""], size: int) -> Check:
    """Whether a prefix that is cut back equals the earlier one and continues alike."""
    if not walker.has("truncate"):
        return Check("truncate", None, "the target has no truncate")
    target, params = walker.target, walker.params
    truncate = jax.jit(target.truncate)
    steps = len(walk.outputs)
    whole = walk.particles[-1]
    all_steps = np.full(size, steps, np.int32)
    truncated = truncate(whole, jnp.asarray(all_steps), params)
    pairs = zip(
        rows_of(whole, size, slice(None)),
        rows_of(truncated, size, slice(None)),
        strict=True,
    )
    if not all(agree(a, b, 0.0) for a, b in pairs):
        detail = "a prefix that is already short enough is changed"
        return Check("truncate", False, detail)
    for depth in range(steps):
        cut = truncate(whole, jnp.full(size, depth, jnp.int32), params)
        step_mask = _takes_step(walk, depth)
        if np.asarray(target.finished(cut))[step_mask].any():
            detail = f"a prefix that was cut back to {depth} steps is finished"
            return Check("truncate", False, detail)
        if depth:
            before = walk.outputs[depth - 1]
            after = walker.evaluate(depth - 1, cut, jnp.zeros(size))
            for name in ("log_potentials", "log_probs", "log_proposals"):
                new, old = np.asarray(getattr(after, name)), getattr(before, name)
                if not agree(new[step_mask], np.asarray(old)[step_mask]):
                    detail = f"{name} of a prefix cut back to {depth} steps"
                    return Check("truncate", False, f"{detail} are not what they were")
        _, next_outputs = walker.step(walker.key_of(key, depth), depth, cut)
        for name, values in next_outputs._asdict().items():
            old = np.asarray(getattr(walk.outputs[depth], name))
            if not agree(np.asarray(values)[step_mask], old[step_mask]):
                detail = f"a prefix cut back to {depth} steps goes on otherwise: {name}"
                return Check("truncate", False, f"{detail} differ under the same key")
    return Check("truncate", True, "a prefix that is cut back is what it was")


def replay_check(walker: Walker, walk: Walk, key: Key[Array, ""], size: int) -> Check:
    """Whether repeating the steps of prefixes gives the same prefixes."""
    if walker.replay_refusal:
        return Check("replay", None, walker.replay_refusal)
    target, params = walker.target, walker.params
    replay = jax.jit(target.replay)
    # Each row repeats the steps of another row, from an empty prefix.
    others = jnp.roll(jnp.arange(size, dtype=jnp.int32), 1)
    sources = walker.gather(walk.particles[-1], others)
    rows = walk.particles[0]
    for t, outputs in enumerate(walk.outputs):
        before = rows
        rows, log_probs = replay(t, rows, sources, params)
        step_mask = np.roll(_takes_step(walk, t), 1)
        replayed = walker.evaluate(t, rows, jnp.zeros(size))
        for name in ("log_potentials", "log_probs", "log_proposals", "finished"):
            new = np.asarray(getattr(replayed, name))
            old = np.roll(np.asarray(getattr(outputs, name)), 1)
            if not agree(new[step_mask], old[step_mask], 1e-3):
                detail = f"{name} after step {t} is repeated"
                return Check("replay", False, f"{detail} are not the source's")
        if walker.has("log_prob"):
            increments = np.asarray(replayed.log_probs) - np.asarray(
                target.log_prob(before, params)
            )
            if not agree(increments[step_mask], np.asarray(log_probs)[step_mask], 1e-3):
                detail = f"replay's log p of step {t} is not what log_prob gains by it"
                return Check("replay", False, detail)
    return Check("replay", True, "repeated steps make the prefixes that they were")
