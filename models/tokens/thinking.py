"""Where a solution thinks: between tags that models write around what is not said."""

TAGS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
"""The tag that begins it, and the one that ends it, in released models."""
SHOWN = frozenset({*TAGS, *TAGS.values()})
"""Tokens that are text to whoever reads a solution, control tokens or not."""


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt ends with a tag that begins the thinking."""
    return prompt.rstrip().endswith(tuple(TAGS))


def is_thinking(text: str, prompt: str = "") -> bool:
    """Whether a solution ends before its thinking does.

    Args:
        text: of the solution so far.
        prompt: that it follows, which may have begun the thinking.
    """
    whole = prompt.rstrip() + text if opens_thinking(prompt) else text
    return any(whole.rfind(begin) > whole.rfind(end) for begin, end in TAGS.items())
