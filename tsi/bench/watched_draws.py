"""A function's draws of random numbers, watched: which keys they use, by value.

The function's jaxpr is evaluated again, with a callback before each draw, and before
each split of a key, that is handed the key's data. Loops and branches are rebuilt
around their evaluated bodies, so that what is not run is not seen, and what is run
twice is seen twice. As in JAX's guide to writing interpreters of jaxprs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

DRAWS = (primitives.random_bits_p, primitives.random_gamma_p)
USES = (*DRAWS, primitives.random_split_p)
"""What spends a key: numbers drawn from it, or keys made of it."""

INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
}
"""Primitives that only call, and the name of what they call."""

Place = tuple[str, int]
"""File and line."""

Note = Callable[[Place, bool, np.ndarray], None]
"""Called with a use's place, whether it is a draw, and the keys' data, [..., 2]."""


def watch(
    function: Callable[..., Any], files: set[str], note: Note
) -> Callable[..., Any]:
    """The function compiled, with `note` called for every key that it spends.

    Args:
        function: of pytrees of arrays.
        files: a use's place is the line of one of these that led to it, if any did.
        note: see `Note`; called by the time of `jax.effects_barrier()`.
    """

    def evaluate(*arguments: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        evaluation = _Evaluation(files, note)
        values = evaluation(closed, jax.tree.leaves(arguments), None)
        return jax.tree.unflatten(jax.tree.structure(shape), values)

    return jax.jit(evaluate)


def _spends(jaxpr: Any) -> bool:
    """Whether a jaxpr spends keys, itself or in what it calls."""
    inside = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        eqn.primitive in USES or any(map(_spends, core.jaxprs_in_params(eqn.params)))
        for eqn in inside.eqns
    )


class _Evaluation:
    def __init__(self, files: set[str], note: Note) -> None:
        self.files, self.note = files, note

    def __call__(self, jaxpr: Any, arguments: Sequence[Any], place: Any) -> list[Any]:
        """Evaluate; `place` is that of the call, where it is known already."""
        consts = getattr(jaxpr, "consts", ())
        inside = getattr(jaxpr, "jaxpr", jaxpr)
        values: dict[Any, Any] = dict(zip(inside.constvars, consts, strict=True))
        values |= zip(inside.invars, arguments, strict=True)

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for eqn in inside.eqns:
            results = self._equation(eqn, [read(a) for a in eqn.invars], place)
            values |= zip(eqn.outvars, results, strict=True)
        return [read(atom) for atom in inside.outvars]

    def _equation(self, eqn: Any, given: list[Any], place: Any) -> list[Any]:
        primitive, params = eqn.primitive, eqn.params
        if primitive in USES:
            where = place or self._place(eqn) or ("", 0)
            note = partial(self.note, where, primitive in DRAWS)
            jax.debug.callback(note, jax.random.key_data(given[0]))
        elif any(map(_spends, core.jaxprs_in_params(params))):
            # What is called may have been traced for another caller: ask this one.
            place = place or self._place(eqn, own_only=True)
            if primitive is primitives.while_p:
                return self._while(params, given, place)
            if primitive is primitives.scan_p:
                return self._scan(params, given, place)
            if primitive is primitives.cond_p:
                branches = [
                    lambda *a, b=branch: self(b, a, place)
                    for branch in params["branches"]
                ]
                return list(jax.lax.switch(given[0], branches, *given[1:]))
            if primitive.name in INLINED:
                return self(params[INLINED[primitive.name]], given, place)
        result = primitive.bind(*given, **primitive.get_bind_params(params))
        return list(result) if primitive.multiple_results else [result]

    def _while(self, params: Any, given: list[Any], place: Any) -> list[Any]:
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        for_test, rest = given[:tests], given[tests:]
        for_body, first = rest[:bodies], rest[bodies:]

        def test(carry: list[Any]) -> Any:
            return self(params["cond_jaxpr"], [*for_test, *carry], place)[0]

        def body(carry: list[Any]) -> list[Any]:
            return self(params["body_jaxpr"], [*for_body, *carry], place)

        return jax.lax.while_loop(test, body, first)

    def _scan(self, params: Any, given: list[Any], place: Any) -> list[Any]:
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, rest = given[:consts], given[consts:]

        def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
            values = self(params["jaxpr"], [*fixed, *carry, *row], place)
            return values[:carries], values[carries:]

        carry, rows = jax.lax.scan(
            body,
            rest[:carries],
            rest[carries:],
            length=params["length"],
            reverse=params["reverse"],
        )
        return [*carry, *rows]

    def _place(self, eqn: Any, *, own_only: bool = False) -> Place | None:
        traceback = eqn.source_info.traceback
        frames = [] if traceback is None else traceback.frames
        for frame in frames:
            if frame.file_name in self.files:
                return frame.file_name, frame.line_num
        for frame in frames:
            if own_only:
                break
            parts = Path(frame.file_name).parts
            if "jax" not in parts and frame.file_name != __file__:
                return frame.file_name, frame.line_num
        return None
