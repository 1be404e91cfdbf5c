"""Checks that models have the required type and the same tokenizer."""

from pathlib import Path
from typing import TypeVar

from jax.sharding import Mesh

from tsi.decoding.vocabularies import first_difference
from tsi.errors import ConfigurationError
from tsi.models.decoder_config import DecoderConfig
from tsi.models.loading.checkpoint import load
from tsi.models.tokens.tokenizer import Tokenizer

T = TypeVar("T")


def same_tokens(left: Tokenizer, right: Tokenizer) -> bool:
    """Whether every id has the same meaning in two tokenizers."""
    return first_difference(left, right) is first_difference(right, left) is None


def check_same_tokens(
    policy: Tokenizer, reward: Tokenizer, policy_name: str, reward_name: str
) -> None:
    """Check that the reward model reads the token ids of the policy as the same text.

    It may have more tokens than the policy, and both vocabularies may be padded.

    Raises:
        ConfigurationError: if an id of the policy's tokenizer has another meaning in
            that of the reward model.
    """
    id = first_difference(policy, reward)
    if id is not None:
        meaning = reward.meaning(id)
        raise ConfigurationError(
            f"{reward_name} has another tokenizer than {policy_name}, whose token ids "
            f"it is to read: {id} is {policy.meaning(id)!r} there and "
            f"{'nothing' if meaning is None else repr(meaning)} here. Choose models of "
            "one tokenizer, or name the format that it was trained with, as in "
            "qwen:PATH."
        )


def check_has_rows(tokenizer: Tokenizer, config: DecoderConfig) -> None:
    """Check that the model has an embedding for every id that a text may have.

    Control tokens may have larger ids, as the image token of Gemma 3 in its text model.

    Raises:
        ConfigurationError: if a text may have an id without an embedding.
    """
    largest = max(tokenizer.backend.get_vocab().values(), default=0)
    ids_without_rows = range(config.vocab_size, largest + 1)
    if any(tokenizer.token_bytes(id) for id in ids_without_rows):
        raise ConfigurationError(
            f"The tokenizer of {tokenizer.name} has ids up to {largest}, and the model "
            f"ids below {config.vocab_size}; one belongs to another model. Download it "
            "again, or choose another."
        )


def load_model(
    path: Path,
    kind: type[T],
    role: str,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    weights: str | None = None,
    shapes_only: bool = False,
) -> T:
    """Load a model of a given class from a folder or file.

    Args:
        path: the folder or file.
        kind: the class.
        role: role of the model, for errors.
        dtype: of the weights.
        mesh: devices on which the weights are placed, if any.
        weights: int8 or int4 for quantised matrices; None for ``dtype``.
        shapes_only: leave the weights on disk.

    Raises:
        CheckpointError: if it cannot be read.
        ConfigurationError: if it is of another class.
    """
    model, _ = load(
        path, dtype=dtype, weights=weights, mesh=mesh, shapes_only=shapes_only
    )
    # A head of another kind is a subclass and has its own format.
    if type(model) is not kind:
        raise ConfigurationError(
            f"{path} is a {type(model).__name__}, and the {role} must be a "
            f"{kind.__name__}; name another model, or the format of this one."
        )
    return model
