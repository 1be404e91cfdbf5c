"""Search for byte strings in a text that is generated token by token.

This is the automaton of Aho and Corasick (Communications of the ACM 18, 1975) over
bytes; for one string it is that of Knuth, Morris and Pratt. After a match the search
starts again, so matches do not overlap.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


def search_tables(
    token_bytes: Sequence[bytes], patterns: Sequence[bytes]
) -> tuple[Int[np.ndarray, "A V"], Bool[np.ndarray, "A V"]]:
    """The next state for each state and token, and whether a pattern was found.

    Args:
        token_bytes: bytes of each token; an empty token does not change the state.
        patterns: byte strings that are not empty.
    """
    table, is_match = byte_automaton(patterns)
    order = np.argsort([-len(text) for text in token_bytes], kind="stable")
    longest = len(token_bytes[order[0]]) if len(order) else 0
    padded = np.zeros((len(order), longest), np.uint8)
    for row, token in enumerate(order):
        padded[row, : len(token_bytes[token])] = list(token_bytes[token])
    lengths = np.asarray([len(token_bytes[token]) for token in order])
    states = np.arange(len(table))[:, None]
    state = np.broadcast_to(states, (len(table), len(order))).copy()
    matched = np.zeros(state.shape, bool)
    for place in range(longest):
        # The tokens are sorted, the longest first.
        count = int(np.searchsorted(-lengths, -place))
        entry = (state[:, :count], padded[:count, place][None])
        matched[:, :count] |= is_match[entry]
        state[:, :count] = table[entry]
    next_state, ends = np.zeros(state.shape, np.int32), np.zeros(state.shape, bool)
    next_state[:, order], ends[:, order] = state, matched
    return next_state, ends


def byte_automaton(
    patterns: Sequence[bytes],
) -> tuple[Int[np.ndarray, "A 256"], Bool[np.ndarray, "A 256"]]:
    """Transitions for each byte, and which of them complete a pattern.

    A state is the longest suffix of the text that is a prefix of some pattern. With one
    pattern, states are numbered by the length of that prefix.
    """
    children: list[dict[int, int]] = [{}]
    whole = [False]
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                whole.append(False)
            node = children[node][byte]
        whole[node] = True
    table = np.zeros((len(children), 256), np.int32)
    shorter = np.zeros(len(children), np.int32)
    queue = deque([0])
    while queue:
        node = queue.popleft()
        fallback = shorter[node]
        whole[node] |= whole[fallback]
        if node:
            table[node] = table[fallback]
        for byte, child in children[node].items():
            shorter[child] = table[fallback, byte] if node else 0
            table[node, byte] = child
            queue.append(child)
    # States in which a pattern is complete are replaced by the start.
    complete = np.asarray(whole)
    numbers = np.where(complete, 0, np.cumsum(~complete) - 1)
    kept_rows = table[~complete]
    return numbers[kept_rows].astype(np.int32), complete[kept_rows]
