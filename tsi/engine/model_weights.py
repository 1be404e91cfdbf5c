"""The weights that the programs of a lane are called with.

Usually the policy and the reward model are both on the device. If they do not fit there
together, :class:`WeightsInTurns` keeps both in the host's memory, and moves a model to
the device when a program needs it, in place of the other. A lane
that asks for the two models alternately is slow and not wrong, so only the speed
depends on the lane's schedule.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsi.models.decoder_config import DecoderConfig
from tsi.models.partition import sharding_of
from tsi.reasoning.particles import ReasoningParams


class ModelWeights:
    """A policy, and a reward model that has its own programs, on the same device.

    Attributes:
        params: weights of the policy, and temperatures.
        reward_model: weights of the reward model, or None.
        settings: `params` without weights.
        takes_turns: whether only one of the models is on the device.
        num_moves: how often a model was moved to the device.

    Args:
        params: weights and temperatures; its prompts are not used.
        reads_text: whether the reward model has its own programs.
    """

    takes_turns = False
    num_moves = 0

    def __init__(self, params: ReasoningParams, reads_text: bool) -> None:
        self._reward_model: Any = params.reward_model if reads_text else None
        self._params = params._replace(reward_model=None) if reads_text else params
        unread: Any = None
        self.settings = params._replace(policy=unread, reward_model=None)

    @property
    def params(self) -> ReasoningParams:
        """Weights of the policy, and temperatures."""
        return self._params

    @property
    def reward_model(self) -> Any:
        """Weights of the reward model."""
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
    def policy_anchor(self) -> Any:
        """An array that is where the policy is computed."""
        return self._params.policy

    @property
    def reward_anchor(self) -> Any:
        """An array that is where the reward model is computed."""
        return self._reward_model


class WeightsInTurns(ModelWeights):
    """A policy and a reward model of which only one is on the device.

    Args:
        params: weights in the host's memory (:func:`weights_on_host`).
        place: puts a model on the device.
    """

    takes_turns = True

    def __init__(self, params: ReasoningParams, place: Callable[[Any], Any]) -> None:
        super().__init__(params, reads_text=True)
        self._place, self.num_moves = place, 0
        self._resident: tuple[str, Any] = ("", None)
        self._anchor = place(np.zeros(1, np.float32))

    @property
    def params(self) -> ReasoningParams:
        """Weights of the policy, on the device from now on, and temperatures."""
        return self._params._replace(policy=self._use("policy", self._params.policy))

    @property
    def reward_model(self) -> Any:
        """Weights of the reward model, on the device from now on."""
        return self._use("reward", self._reward_model)

    @property
    def policy_anchor(self) -> Any:
        """An array that is where the policy is computed."""
        return self._anchor

    @property
    def reward_anchor(self) -> Any:
        """An array that is where the reward model is computed."""
        return self._anchor

    def release(self) -> None:
        """Free the device's memory."""
        _, model = self._resident
        self._resident = ("", None)
        for leaf in jax.tree.leaves(model):
            # Programs that have been started keep what they read until they end.
            leaf.delete()

    def _use(self, name: str, model: Any) -> Any:
        if self._resident[0] != name:
            self.release()
            self._resident = (name, self._place(model))
            self.num_moves += 1
        return self._resident[1]


def weights_on_host(model: Any) -> Any:
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
        return jax.device_put(tree, NamedSharding(part, PartitionSpec()))

    return place


def _divide(model: Any, part: Mesh) -> Any:
    """Put a model's weights on the devices that divide them."""
    graph, state = nnx.split(model)
    leaves = []
    for keys, variable in nnx.to_flat_state(state):
        weight, path = variable.get_value(), ".".join(map(str, keys))
        sharding = sharding_of(path, weight.shape, model.config, part)
        leaves.append((keys, variable.replace(jax.device_put(weight, sharding))))
    return nnx.merge(graph, nnx.from_flat_state(leaves))
