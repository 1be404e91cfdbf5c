"""A target with a forced end, enumerated token by token."""

import jax.numpy as jnp
import numpy as np
import tiny_language as tiny
from flax import nnx

from tsi.decoding.boundary import step_boundary
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.reasoning.particles import ReasoningParams

END, A, B = 0, 1, 2
VOCABULARY = 3
LIMITS = {"max_step_tokens": 2, "max_tokens": 4, "max_steps": 4}


def boundary(vocabulary=VOCABULARY, ends=(END,), **settings):
    letters = [letter.encode() for letter in tiny.ALPHABET[: vocabulary - 1]]
    return step_boundary([b"", *letters], b"a", ends, **settings)


def params(vocabulary=VOCABULARY, **changes):
    """Models that are small and rewards that differ little, for many runs."""
    small = {"width": 8, "hidden": 8, "num_layers": 1, "num_heads": 2}
    config = tiny.config(vocabulary, num_kv_heads=1, **small)
    policy = LanguageModel(config, rngs=nnx.Rngs(0))
    reward = RewardModel(config, rngs=nnx.Rngs(1))
    whole = ReasoningParams(policy, reward, tiny.prompts("ab"), jnp.float32(1.0))
    return whole._replace(**changes)


class Path:
    """A solution by the words of the module's text: a string, then an end."""

    def __init__(self, target, ends, stop_string=""):
        self.target, self.ends, self.stop_string = target, ends, stop_string
        self.tokens, self.forced = (), ()
        self.step = self.place = 0
        self.left, self.due, self.over = None, False, False

    def allowed(self):
        """Tokens that may come next, or None for all."""
        target, forced, n = self.target, self.target.forced_end, len(self.tokens)
        last = self.step == target.max_steps - 1
        left = self.left
        if left is None and (
            n == target.max_tokens - forced.reserve or (last and self.place == 0)
        ):
            left = forced.string
        if left:
            return {left[0]}, left
        at_end = n == target.max_tokens - 1
        at_end |= last and (self.place == target.max_step_tokens - 1 or self.due)
        return ({*self.completing()} if at_end else None), left

    def completing(self):
        text = tiny.decode(list(self.tokens))
        size = len(self.target.boundary.stops)
        for token in range(size):
            whole = text + (tiny.decode([token]) if token not in self.ends else "")
            if token in self.ends or (
                self.stop_string and whole.endswith(self.stop_string)
            ):
                yield token

    def then(self, token):
        allowed, left = self.allowed()
        new = object.__new__(Path)
        new.__dict__ |= self.__dict__
        new.tokens = (*self.tokens, token)
        if allowed is not None:
            new.forced = (*self.forced, (len(self.tokens), tuple(allowed)))
        new.left = left[1:] if left else left
        new.over = token in {*self.completing()}
        new.place, last = self.place + 1, self.step == self.target.max_steps - 1
        ended = token == A and not (last and left)
        ended &= new.place >= (self.target.boundary.min_tokens or 1)
        new.due = self.due or (last and ended)
        cut = new.place == self.target.max_step_tokens
        if cut or (ended and not last):
            new.step, new.place = self.step + 1, 0
        return new


def support(path):
    """All solutions of the target."""
    if path.over:
        return [path]
    size = len(path.target.boundary.stops)
    allowed, _ = path.allowed()
    tokens = range(size) if allowed is None else sorted(allowed)
    return [whole for token in tokens for whole in support(path.then(token))]


def enumerate_target(target, p, ends=(END,), stop_string=""):
    """Log p, log p - log q and log-odds of every solution, by its tokens."""
    paths = support(Path(target, ends, stop_string))
    rows = [("ab", list(path.tokens)) for path in paths]
    log_p, log_odds = tiny.uncached(p, rows)
    prefixes = sorted({path.tokens[:at] for path in paths for at, _ in path.forced})
    size = len(target.boundary.stops)
    asked = [("ab", [*prefix, v]) for prefix in prefixes for v in range(size)]
    after, _ = tiny.uncached(p, asked) if asked else (np.zeros(0), None)
    after = dict(zip(prefixes, after.reshape(-1, size), strict=True))
    found = {}
    for path, log_prob, odds in zip(paths, log_p, log_odds, strict=True):
        correction = 0.0
        for at, allowed in path.forced:
            by_token = after[path.tokens[:at]]
            correction += np.logaddexp.reduce(by_token[list(allowed)])
            correction -= np.logaddexp.reduce(by_token)
        found[path.tokens] = (log_prob, correction, odds)
    return found
