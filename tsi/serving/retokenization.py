"""Whether a server that takes text reads a step as other tokens than it has drawn.

Such a server gets the prefix as text and tokenises it anew. Its answers do not say
which tokens it has drawn, but each event of a stream ends where a token ends. If the
tokenizer is known here, these places are compared with the ends of the tokens as which
the server will read the text. A place where none of these ends shows that the policy
continues another prefix than was drawn. Two different tokenisations that agree in all
these places are not found, so a count of such steps is a lower bound.
"""

import itertools
from collections.abc import Sequence

from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.serving.text_server import join_surrogates


def is_retokenized(tokenizer: Tokenizer, prefix: str, pieces: Sequence[str]) -> bool:
    """Whether a step is certainly read as other tokens than were drawn.

    Args:
        tokenizer: of the policy.
        prefix: the text that the step follows, with its control tokens by their names.
        pieces: texts of the step, each of one or more drawn tokens.
    """
    ends = token_ends(tokenizer, prefix + "".join(pieces))
    if ends is None:
        return False
    sizes = [size_of(text) for text in (prefix, *pieces)]
    # The next step decides about the last place: its first token may join the last one.
    places = itertools.accumulate(sizes[:-1])
    total = sum(sizes)
    return any(total - place not in ends for place in places)


def cut_pieces(pieces: Sequence[str], text: str) -> list[str]:
    """The pieces of a step, as far as they are in its text.

    Args:
        pieces: as they arrived. A surrogate pair may be divided between two of them,
            which become one.
        text: of the step, with which the pieces begin.

    >>> cut_pieces(["a", "b+", "c"], "ab")
    ['a', 'b']
    """
    whole: list[str] = []
    for piece in pieces:
        if whole and "\ud800" <= whole[-1][-1:] <= "\udbff":
            whole[-1] += piece
        else:
            whole.append(piece)
    ends = list(itertools.accumulate(len(join_surrogates(piece)) for piece in whole))
    cut = [text[a:b] for a, b in itertools.pairwise((0, *ends))]
    return [piece for piece in cut if piece]


def token_ends(tokenizer: Tokenizer, text: str) -> set[int] | None:
    """Bytes of a text that are left after each of its tokens.

    Counted from the end of the text, since some tokenizers put a space before it.

    Returns:
        None if the tokens do not spell the text, as with a tokenizer that changes it.
    """
    try:
        ids = tokenizer.encode(text, allow_special=True)
    except ConfigurationError:
        return None
    spelled = [spelling_of(tokenizer, id) for id in ids]
    data = text.encode("utf-8", "surrogatepass")
    if b"".join(spelled) not in (data, b" " + data):
        return None
    left, ends = sum(map(len, spelled)), set()
    ends.add(left)
    for piece in spelled:
        left -= len(piece)
        ends.add(left)
    # The beginning of the text is an end of nothing, also behind an added space.
    ends.add(len(data))
    return ends


def spelling_of(tokenizer: Tokenizer, id: int) -> bytes:
    """The bytes of a token, or of the name of a control token."""
    meaning = tokenizer.meaning(id)
    return meaning.encode() if isinstance(meaning, str) else meaning or b""


def size_of(text: str) -> int:
    """Bytes of a text."""
    return len(text.encode("utf-8", "surrogatepass"))
