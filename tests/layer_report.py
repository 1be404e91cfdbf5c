"""Where two implementations part: the hidden states of transformers beside ours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from tsi.models.decoder import positions_of


class Nothing(nnx.Module):
    """In the place of the final norm."""

    def __call__(self, x):
        return x


def hidden_states(model, tokens: np.ndarray) -> list[np.ndarray]:
    """Embedded tokens and what each layer makes of them, before the final norm."""
    config, chunk = model.config, jnp.asarray(tokens)
    found = []
    for depth in range(config.num_layers + 1):
        trunk = nnx.clone(model.trunk)
        graph, state = nnx.split(trunk.blocks)
        trunk.blocks = nnx.merge(graph, jax.tree.map(lambda x, d=depth: x[:d], state))
        local = config.sliding_window
        if local is not None:
            local = local._replace(layers=local.layers[:depth])
        trunk.config = dataclasses.replace(
            config, num_layers=depth, sliding_window=local
        )
        trunk.norm = Nothing()
        hidden, _ = trunk(chunk, positions_of(chunk))
        found.append(np.asarray(hidden))
    return found


def their_hidden_states(model, tokens: np.ndarray) -> list[np.ndarray]:
    """The same of a model of transformers, as its decoder layers hand them on."""
    found: list[np.ndarray] = []
    inner = model.model

    def note_input(module, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        found.append(x.detach().numpy())

    hooks = [
        layer.register_forward_pre_hook(note_input, with_kwargs=True)
        for layer in [*inner.layers, inner.norm]
    ]
    with torch.no_grad():
        inner(torch.tensor(tokens))
    for hook in hooks:
        hook.remove()
    return found


def layer_report(ours, theirs, tokens: np.ndarray) -> str:
    """A line for each layer: the largest difference, and the size of what differs."""
    mine, other = hidden_states(ours, tokens), their_hidden_states(theirs, tokens)
    lines = ["largest difference of hidden states (their standard deviation):"]
    for depth, (a, b) in enumerate(zip(mine, other, strict=True)):
        where = f"after layer {depth}" if depth else "embedding"
        lines.append(f"  {where}: {np.abs(a - b).max():.2e} ({b.std():.2g})")
    return "\n".join(lines)
