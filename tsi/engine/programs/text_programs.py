"""The compiled programs of a reward model that reads text rendered by the host.

They do not depend on the policy and its rows, so that the reward model may lie on other
devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from tsi.decoding.cache import Suffix, squeeze
from tsi.engine.meters.clock import Timed
from tsi.engine.paging.page_programs import PagePrograms
from tsi.engine.paging.pages import Dense, layers_of
from tsi.models.attention import Segment
from tsi.rewards.reader_questions import Questions
from tsi.rewards.reader_state import RenderedRows, mask_prompt
from tsi.rewards.text_reader import TextReader


class TextPrograms(PagePrograms):
    """Programs of one reward on one group of devices.

    Args:
        reader: the reward.
        mesh: as in :class:`PagePrograms`.
    """

    def __init__(self, reader: TextReader, mesh: Mesh | None) -> None:
        super().__init__(mesh)
        self.reader = reader
        read = jax.jit(self._read, static_argnums=8, donate_argnums=2)
        self.read_prompts = Timed(jax.jit(reader.read_prompts), "prefill")
        self.enter = Timed(jax.jit(self._enter, donate_argnums=0), "prefill")
        self.read = Timed(read, "reward")

    def empty_prompts(self, like: Segment, problems: int) -> Segment:
        """Zeros for the prompts of P problems."""

        def room(leaf: Array, axis: int) -> Array:
            shape = (*leaf.shape[:axis], problems, *leaf.shape[axis + 1 :])
            return jnp.zeros(shape, leaf.dtype)

        return self.place(
            like._replace(
                keys=room(like.keys, 1),
                values=room(like.values, 1),
                positions=room(like.positions, 0),
                mask=room(like.mask, 0),
            )
        )

    def _enter(
        self, prompts: Segment, new: Segment, places: Int[Array, " E"]
    ) -> Segment:
        """Write prompts at places; places out of range are dropped."""
        return prompts._replace(
            keys=prompts.keys.at[:, places].set(new.keys, mode="drop"),
            values=prompts.values.at[:, places].set(new.values, mode="drop"),
            positions=prompts.positions.at[places].set(new.positions, mode="drop"),
            mask=prompts.mask.at[places].set(new.mask, mode="drop"),
        )

    def _read(
        self,
        model: Any,
        prompts: Segment,
        cache: Dense,
        places: Int[Array, " A"],
        shared: Int[Array, " A"],
        rendered: RenderedRows,
        values: Float[Array, "A L"],
        log_prob: Float[Array, " A"],
        width: int,
    ) -> tuple[Array, Array, Dense]:
        """Read the new ids of rows.

        Args:
            model: the reward model.
            prompts: of all problems.
            cache: caches of the rows, cut to the positions that stay valid.
            places: place of each row's problem.
            shared: number of positions of the prompt that each row attends to.
            rendered: rendered rows to be read.
            values: the model's output at the ids that stay.
            log_prob: the policy's log-probability of each solution.
            width: number of ids that are read in one pass.

        Returns:
            Log-odds, the values of all ids, and the caches without gaps.
        """
        prompt = prompts._replace(
            keys=prompts.keys[:, places],
            values=prompts.values[:, places],
            positions=prompts.positions[places],
            mask=prompts.mask[places],
        )
        num_kept = rendered.common - shared
        keys, by_layer = map(jnp.stack, self.divide(cache))
        slots = jnp.arange(keys.shape[-1])
        positions = shared[:, None] + slots
        past = Segment(keys, by_layer, positions, slots < num_kept[:, None])
        suffix, values = self.reader.read_new(
            model,
            mask_prompt(prompt, shared),
            Suffix(past, jnp.max(num_kept)),
            values,
            rendered,
            width,
        )
        log_odds = self.reader.log_odds(values, rendered, log_prob)
        whole = squeeze(suffix).segment
        return log_odds, values, self.divide(layers_of(whole.keys, whole.values))


def dense_like(prompt: Segment) -> Dense:
    """Dense rows without positions, of the model that has read a prompt."""
    return layers_of(prompt.keys[..., :0], prompt.values[..., :0, :])


def take_questions(questions: Any, problems: Any) -> Questions:
    """The questions of some problems, by index."""
    return Questions(*(leaf[problems] for leaf in questions))
