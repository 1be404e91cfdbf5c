"""The part of a solution in which the model thinks, between two tags."""

TAGS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
"""The tags that begin and end it in released models."""
TAG_TOKENS = frozenset({*TAGS, *TAGS.values()})
"""Tokens that count as text, even where a tokenizer has them as control tokens."""


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt ends with the tag that begins the thinking."""
    return prompt.rstrip().endswith(tuple(TAGS))


def is_thinking(text: str, prompt: str = "") -> bool:
    """Whether a solution ends within its thinking.

    Args:
        text: of the solution so far.
        prompt: before the solution; it may begin the thinking.
    """
    whole = prompt.rstrip() + text if opens_thinking(prompt) else text
    return any(whole.rfind(begin) > whole.rfind(end) for begin, end in TAGS.items())
