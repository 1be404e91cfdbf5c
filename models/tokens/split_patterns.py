"""Regular expressions by which released models split text before byte-pair merging.

They have the form of the models' own tokenizer.json. They split any text in a time
proportional to its length; other expressions may take longer.

Source: llama.cpp's src/llama-vocab.cpp.
"""

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}" + _TAIL.replace(r"[\r\n]*", r"[\r\n/]*", 1)
)
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    TEKKEN.replace(rf"{_LOWER}+|", rf"{_LOWER}+{_SUFFIX}|")
    .replace(rf"{_LOWER}*|", rf"{_LOWER}*{_SUFFIX}|")
    .replace(r"|\p{N}|", r"|\p{N}{1,3}|")
)
DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
CHARACTER = r"[\s\S]"
"""One character, as in the tiny models that ship here."""
KNOWN = frozenset({LLAMA3, QWEN2, TEKKEN, GPT4O, *DEFAULT, CHARACTER})
