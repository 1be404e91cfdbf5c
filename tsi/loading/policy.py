"""A policy by name: its weights, its tokenizer, and how its tokens are drawn."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jax.sharding import Mesh

from tsi.decoding.truncation import Truncation
from tsi.loading.model_checks import check_has_rows, load_model
from tsi.loading.model_sampling import Drawing, combine_drawing
from tsi.models.decoder import LanguageModel
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer


class Policy(NamedTuple):
    """A language model that proposes steps.

    Attributes:
        name: as passed to `load_policy`.
        path: folder or file of the model.
        model: the weights.
        tokenizer: the tokenizer of the model.
        drawing: temperature, truncation and repetition penalty.
    """

    name: str
    path: Path
    model: LanguageModel
    tokenizer: Tokenizer
    drawing: Drawing = Drawing()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a solution, from the tokenizer and the files of the model."""
        ids = (*self.tokenizer.eos_ids, *self.model.config.eos_ids)
        return tuple(dict.fromkeys(ids))

    def __repr__(self) -> str:
        """The name and the sampling settings, without weights and vocabulary."""
        return f"Policy({self.name!r}, {self.drawing})"


def load_policy(
    name: str,
    *,
    temperature: float | None = None,
    truncation: Truncation = Truncation(),  # noqa: B008
    repetition_penalty: float | None = None,
    model_sampling: bool = False,
    dtype: str = "float32",
    weights: str | None = None,
    mesh: Mesh | None = None,
    template_switches: Mapping[str, Any] = MappingProxyType({}),
    shapes_only: bool = False,
) -> Policy:
    """Load a policy.

    Args:
        name: from `tsi models`, an id of the Hugging Face hub, or the path of a folder
            or a GGUF file.
        temperature: of the policy; 1 if None.
        truncation: tokens that the policy may write; all methods sample from the
            truncated policy and use its probabilities.
        repetition_penalty: of that policy; None for none.
        model_sampling: whether the settings of the model replace temperature,
            truncation and penalty where these are None.
        dtype: of the weights.
        weights: int8 or int4 for quantised matrices; None for ``dtype``.
        mesh: devices on which the weights are placed; None for the default device.
        template_switches: variables of the chat template, of JSON types, such as
            ``enable_thinking``.
        shapes_only: leave the weights on disk, for planning only.

    Raises:
        UnknownNameError: for an unknown model.
        CheckpointError: if the model cannot be read.
        DownloadError: if it cannot be downloaded.
        ConfigurationError: if it is not a language model, its tokenizer belongs to
            another model, the truncation is invalid, or the chat template does not
            read one of the switches.
    """
    truncation.check()
    path = get(name)
    drawing = combine_drawing(
        path,
        temperature,
        truncation,
        repetition_penalty,
        use_model_settings=model_sampling,
    )
    tokenizer = load_tokenizer(path, switches=template_switches)
    model = load_model(path, LanguageModel, "policy", dtype, mesh, weights, shapes_only)
    check_has_rows(tokenizer, model.config)
    return Policy(name, path, model, tokenizer, drawing)
