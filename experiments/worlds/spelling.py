"""Whether a policy has tokens for the characters of its problems."""

from collections.abc import Iterable

from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer

MAX_SHOWN = 12
"""Characters in a message."""


def check_spelling(
    tokenizer: Tokenizer, policy: str, task: str, texts: Iterable[str]
) -> None:
    """Refuse a policy without tokens for some characters of the texts.

    The package's own policies have only the characters of their own task.

    Args:
        tokenizer: of the policy.
        policy: its name.
        task: name of the task, or of the file of problems.
        texts: that the policy is to read.

    Raises:
        ConfigurationError: names these characters.
    """
    missing = []
    for character in sorted(set().union(*texts)):
        try:
            tokenizer.encode(character)
        except ConfigurationError:
            missing.append(character)
    if missing:
        examples = f"{''.join(missing[:MAX_SHOWN])!r}"
        examples += " and others" * (len(missing) > MAX_SHOWN)
        raise ConfigurationError(
            f"The policy {policy} cannot read the problems of {task}: it has no tokens "
            f"for {len(missing)} of their characters ({examples}). Such a policy was "
            "trained on one task only; name a language model with --policy, such as "
            "smollm2-135m, a hub id or a folder."
        )
