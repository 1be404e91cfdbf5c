"""Models that must fit each other: of one kind, with one tokenizer."""

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
    """Whether every id stands for the same in two tokenizers."""
    return first_difference(left, right) is first_difference(right, left) is None


def check_same_tokens(
    policy: Tokenizer, reward: Tokenizer, policy_name: str, reward_name: str
) -> None:
    """Refuse a reward model that would take the policy's ids for other texts.

    It may know more tokens than the policy, and either may pad its vocabulary.

    Raises:
        ConfigurationError: an id of the policy's tokenizer stands for something else in
            the reward model's.
    """
    id = first_difference(policy, reward)
    if id is not None:
        found = reward.meaning(id)
        raise ConfigurationError(
            f"{reward_name} has another tokenizer than {policy_name}, whose token ids "
            f"it is to read: {id} is {policy.meaning(id)!r} there and "
            f"{'nothing' if found is None else repr(found)} here. Choose models of one "
            "tokenizer, or name the format that it was trained with, as in qwen:PATH."
        )


def check_has_rows(tokenizer: Tokenizer, config: DecoderConfig) -> None:
    """Refuse a tokenizer whose texts have ids that the model has no embedding of.

    Control tokens may lie beyond, as Gemma 3's for pictures does in its text model.

    Raises:
        ConfigurationError: a text may have such an id.
    """
    largest = max(tokenizer.backend.get_vocab().values(), default=0)
    beyond = range(config.vocab_size, largest + 1)
    if any(tokenizer.token_bytes(id) for id in beyond):
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
    """The model in a folder or file, which must be of a kind.

    Args:
        path: of the folder or file.
        kind: the class.
        role: what it is for, in the words of an error.
        dtype: of the weights.
        mesh: devices to place them on, if any.
        shapes_only: leave the weights on disk.

    Raises:
        CheckpointError: it cannot be read.
        ConfigurationError: it is of another kind.
    """
    model, _ = load(
        path, dtype=dtype, weights=weights, mesh=mesh, shapes_only=shapes_only
    )
    # A head of another kind is a subclass, and is read by its own format.
    if type(model) is not kind:
        raise ConfigurationError(
            f"{path} is a {type(model).__name__}, and the {role} must be a "
            f"{kind.__name__}; name another model, or the format of this one."
        )
    return model
