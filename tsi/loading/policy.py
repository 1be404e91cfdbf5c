"""A policy by name: its weights, its tokenizer, and how its tokens are drawn."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jax.sharding import Mesh

from tsi.decoding.truncation import Truncation
from tsi.loading.model_checks import check_has_rows, load_model
from tsi.loading.model_sampling import Drawing, drawing_of
from tsi.models.decoder import LanguageModel
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer


class Policy(NamedTuple):
    """A language model that proposes steps.

    Attributes:
        name: as it was asked for.
        path: of its folder or file.
        model: its weights.
        tokenizer: its own.
        drawing: temperature, truncation and repetition penalty.
    """

    name: str
    path: Path
    model: LanguageModel
    tokenizer: Tokenizer
    drawing: Drawing = Drawing()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a solution, by the tokenizer or by the model's own files."""
        both = (*self.tokenizer.eos_ids, *self.model.config.eos_ids)
        return tuple(dict.fromkeys(both))

    def __repr__(self) -> str:
        """The name, and how tokens are drawn; weights and vocabulary fill pages."""
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
        truncation: tokens that the policy may write; the truncated policy is what all
            methods sample from and weigh by.
        repetition_penalty: of that policy; None for none.
        model_sampling: whether the policy's own files say what of these is None.
        dtype: of the weights.
        weights: int8 or int4, to keep their matrices so; None to keep them in
            ``dtype``.
        mesh: devices to place them on; None for the default device.
        template_switches: variables of the chat template, of JSON types, such as
            ``enable_thinking``.
        shapes_only: leave the weights on disk: a policy to plan with, not to run.

    Raises:
        UnknownNameError: there is no such model.
        CheckpointError: the model cannot be read.
        DownloadError: it cannot be fetched.
        ConfigurationError: it is no language model, its tokenizer is that of another,
            the truncation is none, or the chat template reads no switch of a name.
    """
    truncation.check()
    path = get(name)
    drawing = drawing_of(
        path,
        temperature,
        truncation,
        repetition_penalty,
        as_the_model_says=model_sampling,
    )
    tokenizer = load_tokenizer(path, switches=template_switches)
    model = load_model(path, LanguageModel, "policy", dtype, mesh, weights, shapes_only)
    check_has_rows(tokenizer, model.config)
    return Policy(name, path, model, tokenizer, drawing)
