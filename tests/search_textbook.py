"""Searches in plain Python: lists, loops and floats, and no line of the samplers.

Each is fed the replies of a recorded run and yields what it would have asked for. A row
that takes a step is (parent's slot, own slot); replies are (log potential, finished).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tsi.explore import explore
from tsi.step_keys import step_keys


class Spied(NamedTuple):
    inner: object
    request: object
    done: object


class Turn(NamedTuple):
    request: object
    reply: object


def spy(explorer):
    """The same explorer, whose info is what was asked and what was answered."""

    def init(key, num_particles, max_steps):
        inner = explorer.init(key, num_particles, max_steps)
        _, request = jax.eval_shape(explorer.ask, key, inner)
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), request)
        return Spied(inner, empty, inner.done)

    def ask(key, state):
        inner, request = explorer.ask(key, state.inner)
        return Spied(inner, request, inner.done), request

    def tell(key, state, reply):
        inner, _ = explorer.tell(key, state.inner, reply)
        return Spied(inner, state.request, inner.done), Turn(state.request, reply)

    return explorer._replace(init=init, ask=ask, tell=tell)


def recorder(explorer, target, size):
    """A compiled `(keys, params) -> recordings`, over many keys at once."""
    spied = spy(explorer)
    run = jax.vmap(lambda key, p: explore(spied, target, key, size, p), (0, None))
    return jax.jit(run)


def recording(runs, index):
    """Of one run: its last state, and for each turn what was asked and answered."""
    exploration, turns = jax.tree.map(lambda leaf: np.asarray(leaf[index]), runs)
    recorded = []
    for n in range(int(exploration.turn)):
        request, reply = jax.tree.map(lambda leaf, n=n: leaf[n], turns)
        rows = [
            (int(parent), int(slot))
            for parent, slot, extend in zip(*request[:3], strict=True)
            if extend
        ]
        replies = [
            (-math.inf if np.isnan(lp) else float(lp), bool(ended))
            for lp, ended, extend in zip(
                reply.log_potentials, reply.finished, request.extend, strict=True
            )
            if extend
        ]
        recorded.append((rows, replies))
    return exploration.state.inner, recorded


def reward(log_potential):
    return 1.0 / (1.0 + math.exp(-log_potential)) if log_potential > -700 else 0.0


class Node:
    def __init__(self, slot, parent=None, log_potential=0.0, finished=False):
        self.slot, self.parent, self.finished = slot, parent, finished
        self.reward, self.alive = reward(log_potential), log_potential > -math.inf
        self.children, self.found = [], []

    def below(self):
        for child in self.children:
            yield child
            yield from child.below()


def first_best(nodes, score):
    """The largest score; what differs only by rounding goes to the lower slot."""
    best = max(score(node) for node in nodes)
    return next(n for n in nodes if score(n) == best or score(n) > best - 1e-6)


def living(nodes):
    return [node for node in nodes if node.alive] or nodes


def puct_score(node, child):
    n, m = len(node.found), len(child.found)
    c = math.log((n + 19652 + 1) / 19652) + 1.25
    value = sum(child.found) / m if m else child.reward
    return value + c / len(node.children) * math.sqrt(n) / (1 + m)


def uct_score(node, child):
    n, m = len(node.found), len(child.found)
    if m == 0:
        return 1e9 + child.reward
    return sum(child.found) / m + math.sqrt(2) * math.sqrt(math.log(n) / m)


def textbook_mcts(recorded, width, score, to_end):
    """Yields the rows of each turn; its tree is returned at the end."""
    root = node = Node(0)
    size = 1
    for _, replies in recorded:
        while node.children:
            here = node
            node = first_best(living(here.children), lambda c, h=here: score(h, c))
        asked = []
        if not node.finished:
            asked = [(node.slot, size + i) for i in range(width)]
            size += width
            yield asked
            for (_, slot), (log_potential, ended) in zip(asked, replies, strict=True):
                node.children.append(Node(slot, node, log_potential, ended))
        else:
            yield asked
        ends = node.finished if to_end else node is not root
        if ends:
            up = node
            while up is not None:
                up.found.append(node.reward)
                up = up.parent
        if node.finished or not to_end:
            node = root
    return root


def textbook_ab_mcts(recorded, key_steps, batch, to_end, posterior, stored):
    root = Node(0)
    nodes, walks = {0: root}, [None] * batch

    def sums(rewards):
        return len(rewards), sum(rewards), sum(r * r for r in rewards)

    def drawn(key):
        seen = np.zeros((3, 3, stored))
        for slot, node in nodes.items():
            below = [n.reward for n in node.below() if n.parent is not node]
            seen[:, 0, slot] = sums([n.reward for n in node.children])
            seen[:, 1, slot] = sums(below)
            seen[:, 2, slot] = sums([node.reward] + [n.reward for n in node.below()])
        seen[:, 2, 0] = 0.0
        return np.asarray(posterior(key, seen))

    for turn, (_, replies) in enumerate(recorded):
        asked = []
        for w, key in enumerate(
            jax.random.split(step_keys(key_steps, turn).ask, batch)
        ):
            node = walks[w]
            if node is None:
                gen, cont, own = drawn(key)
                node = root
                while True:
                    going = living([c for c in node.children if not c.finished])
                    if not going or gen[node.slot] >= cont[node.slot]:
                        break
                    node = max(going, key=lambda c: own[c.slot])
            asked.append((node.slot, len(nodes) + w))
        yield asked
        for w, (row, told) in enumerate(zip(asked, replies, strict=True)):
            parent = nodes[row[0]]
            child = Node(row[1], parent, *told)
            parent.children.append(child)
            nodes[row[1]] = child
            walks[w] = child if to_end and not child.finished else None


def textbook_lookahead(recorded, size, width, k):
    """Candidates are (log potential, finished); a round is a step and a look-ahead."""
    replies = iter(replies for _, replies in recorded)
    candidates, ranks = [(0.0, False)] * size, [-math.inf] * size
    while not all(ended for _, ended in candidates):
        alive = [i for i in range(size) if ranks[i] > -math.inf]
        alive.sort(key=lambda i: (-ranks[i], i))
        kept = list(range(size))
        if alive:
            kept = [alive[i // width % len(alive)] for i in range(size)]
        candidates = [candidates[i] for i in kept]
        growing = [i for i in range(size) if not candidates[i][1]]
        yield [(kept[i], i) for i in growing]
        for i, reply in zip(growing, next(replies), strict=True):
            candidates[i] = reply
        ahead = list(candidates)
        for step in range(k):
            growing = [i for i in range(size) if not ahead[i][1]]
            if not growing:
                break
            yield [(i if step == 0 else size + i, size + i) for i in growing]
            for i, reply in zip(growing, next(replies), strict=True):
                ahead[i] = reply
        ranks = [log_potential for log_potential, _ in ahead]


def textbook_step_beam(recorded, size, width, released):
    num_beams = size // width
    beams, aside = list(range(1 if released else num_beams)), {}
    for _, replies in recorded:
        free = [slot for slot in range(2 * size) if slot not in aside]
        parents = [beam for beam in beams for _ in range(width)]
        asked = list(zip(parents, free, strict=False))
        yield asked
        fresh = {slot: told for (_, slot), told in zip(asked, replies, strict=True)}
        ranked = sorted(fresh, key=lambda slot: (-fresh[slot][0], slot))
        if released:
            ranked = ranked[:num_beams]
        ended = [slot for slot in ranked if fresh[slot][1]]
        aside.update({slot: fresh[slot][0] for slot in ended})
        best = sorted(aside, key=lambda slot: (-aside[slot], slot))[:size]
        aside = {slot: aside[slot] for slot in best}
        num_beams -= len(ended) if released else 0
        unfinished = [slot for slot in ranked if slot not in ended]
        hopeful = [slot for slot in unfinished if fresh[slot][0] > -math.inf]
        if hopeful or any(value > -math.inf for value in aside.values()):
            unfinished = hopeful
        beams = unfinished[:num_beams]
    return aside
