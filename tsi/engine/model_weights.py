"""The weights that the programs of a lane are called with.

Usually the policy and the reward model are both on the device. If they do not fit there
together, :class:`OffloadedWeights` keeps both in the host's memory, and copies a model
to the device when a program needs it, in place of the other one. Alternating between
the models costs time; results do not change.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsi.engine.lanes import part_of
from tsi.engine.meters.clock import Timed
from tsi.models.decoder_config import DecoderConfig
from tsi.models.partition import put, sharding_of
from tsi.reasoning.particles import ReasoningParams


class ModelWeights:
    """Weights that stay on their devices.

    Attributes:
        settings: temperatures and truncation, without weights.
        is_offloaded: whether only one of the models is on the device at a time.
        num_transfers: how often a model was copied to the device.

    Args:
        params: weights and temperatures; its prompts are not used.
        reads_text: whether the reward model reads rendered text, in its own programs.
    """

    is_offloaded = False
    num_transfers = 0

    def __init__(self, params: ReasoningParams, reads_text: bool) -> None:
        self._reward_model: Any = params.reward_model if reads_text else None
        self._params = params._replace(reward_model=None) if reads_text else params
        unread: Any = None
        self.settings = params._replace(policy=unread, reward_model=None)

    @property
    def params(self) -> ReasoningParams:
        """Weights for the policy's programs, and temperatures.

        The reward model is included if it reads in these programs.
        """
        return self._params

    @property
    def reward_model(self) -> Any:
        """Weights of a reward model that reads rendered text, or None."""
        return self._reward_model

    @property
    def policy_config(self) -> DecoderConfig:
        """The configuration of the policy."""
        return self._params.policy.config

    @property
    def reward_config(self) -> Any:
        """The configuration of the reward model."""
        return self._reward_model.config

    @property
    def policy_location(self) -> Any:
        """A tree of arrays on the devices of the policy."""
        return self._params.policy

    @property
    def reward_location(self) -> Any:
        """A tree of arrays on the devices of the reward model."""
        return self._reward_model

    def release(self) -> None:
        """Free what was copied to the device."""


class OffloadedWeights(ModelWeights):
    """A policy and a reward model of which one at a time is on the device.

    Args:
        params: weights in the host's memory (:func:`fetch_weights`).
        place: puts a model, or an array, on the device.
    """

    is_offloaded = True

    def __init__(self, params: ReasoningParams, place: Callable[[Any], Any]) -> None:
        super().__init__(params, reads_text=True)
        self.num_transfers = 0
        self._place = Timed(place, "move")
        self._on_device: tuple[str, Any] = ("", None)
        self._location = place(np.zeros(1, np.float32))

    @property
    def params(self) -> ReasoningParams:
        """Weights of the policy, which are now on the device, and temperatures."""
        return self._params._replace(policy=self._use("policy", self._params.policy))

    @property
    def reward_model(self) -> Any:
        """Weights of the reward model, which are now on the device."""
        return self._use("reward", self._reward_model)

    @property
    def policy_location(self) -> Any:
        """An array on the device."""
        return self._location

    @property
    def reward_location(self) -> Any:
        """An array on the device."""
        return self._location

    def release(self) -> None:
        """Free what was copied to the device."""
        _, model = self._on_device
        self._on_device = ("", None)
        if model is None:
            return
        # Programs that have been started may still read the weights. A device runs its
        # programs in order, so this one ends after them.
        jax.block_until_ready(self._location + 0)
        for leaf in jax.tree.leaves(model):
            leaf.delete()

    def _use(self, name: str, model: Any) -> Any:
        if self._on_device[0] != name:
            self.release()
            self._on_device = (name, self._place(model))
            self.num_transfers += 1
        return self._on_device[1]


def weights_of_groups(
    params: ReasoningParams,
    parts: list[Mesh | None],
    *,
    reads_text: bool,
    offload: bool,
) -> list[ModelWeights]:
    """The weights of each group of devices.

    Args:
        params: weights on all devices, or in the host's memory, and temperatures.
        parts: the groups.
        reads_text: whether the reward model reads rendered text.
        offload: whether the weights are in the host's memory.
    """
    if offload:
        return [OffloadedWeights(params, place_on(part)) for part in parts]
    # Read here, on one thread: JAX builds the list of an array's shards when it is
    # first read, and threads of several lanes could read an incomplete list.
    models = params.policy, params.reward_model
    weights = []
    for part in parts:
        policy, reward_model = part_of(models, part)
        part_params = params._replace(policy=policy, reward_model=reward_model)
        weights.append(ModelWeights(part_params, reads_text=reads_text))
    return weights


def fetch_weights(model: Any) -> Any:
    """A model whose weights are in the host's memory."""

    def fetch(leaf: Any) -> Any:
        return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(fetch, model)


def place_on(part: Mesh | None) -> Callable[[Any], Any]:
    """A function that puts a model, or an array, on a group of devices.

    Args:
        part: the group, with an axis ``model`` over which weights are divided; None for
            the default device.
    """

    def place(tree: Any) -> Any:
        if part is None:
            return jax.device_put(tree)
        if part.size == 1:
            return jax.device_put(tree, part.devices.flat[0])
        if isinstance(getattr(tree, "config", None), DecoderConfig):
            return _divide(tree, part)
        return put(tree, NamedSharding(part, PartitionSpec()))

    return place


def _divide(model: Any, part: Mesh) -> Any:
    """Put a model's weights on the devices that divide them."""
    graph, state = nnx.split(model)
    leaves = []
    for keys, variable in nnx.to_flat_state(state):
        weight, path = variable.get_value(), ".".join(map(str, keys))
        sharding = sharding_of(path, weight.shape, model.config, part)
        leaves.append((keys, variable.replace(put(weight, sharding))))
    return nnx.merge(graph, nnx.from_flat_state(leaves))
