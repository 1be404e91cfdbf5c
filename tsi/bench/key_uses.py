"""Record which keys a function uses for draws and splits, by value.

The function's jaxpr is evaluated by an interpreter, as in JAX's guide to interpreters
of jaxprs, with a callback that gets the key's data before each draw and each split.
Loops and branches are rebuilt around their interpreted bodies, so that only code that
runs is recorded, and code that runs twice is recorded twice.
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
"""Primitives that use a key: to draw numbers, or to make keys."""

INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
}
"""Primitives that only call a jaxpr, and the parameter that holds it."""

Place = tuple[str, int]
"""File and line."""

Record = Callable[[Place, bool, np.ndarray], None]
"""Called with a use's place, whether it is a draw, and the keys' data, [..., 2]."""


def record_keys(
    function: Callable[..., Any], files: set[str], record_use: Record
) -> Callable[..., Any]:
    """Compile a function so that `record_use` is called for every key that it uses.

    Args:
        function: function of pytrees of arrays.
        files: files of interest: the place of a use is the line in one of these files
            that led to it, if there is one.
        record_use: see `Record`; all calls have returned after `jax.effects_barrier()`.
    """

    def evaluate(*arguments: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        evaluation = _Evaluation(files, record_use)
        values = evaluation(closed, jax.tree.leaves(arguments), None)
        return jax.tree.unflatten(jax.tree.structure(shape), values)

    return jax.jit(evaluate)


def _uses_keys(jaxpr: Any) -> bool:
    """Whether a jaxpr uses keys, itself or in jaxprs that it calls."""
    inside = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        eqn.primitive in USES or any(map(_uses_keys, core.jaxprs_in_params(eqn.params)))
        for eqn in inside.eqns
    )


class _Evaluation:
    def __init__(self, files: set[str], record_use: Record) -> None:
        self.files, self.record_use = files, record_use

    def __call__(self, jaxpr: Any, arguments: Sequence[Any], place: Any) -> list[Any]:
        """Evaluate a jaxpr; `place` is the place of the call, if already known."""
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

    def _equation(self, eqn: Any, values_in: list[Any], place: Any) -> list[Any]:
        primitive, params = eqn.primitive, eqn.params
        if primitive in USES:
            where = place or self._place(eqn) or ("", 0)
            record_use = partial(self.record_use, where, primitive in DRAWS)
            jax.debug.callback(record_use, jax.random.key_data(values_in[0]))
        elif any(map(_uses_keys, core.jaxprs_in_params(params))):
            # The called jaxpr may have been traced for another caller.
            place = place or self._place(eqn, own_only=True)
            if primitive is primitives.while_p:
                return self._while_loop(params, values_in, place)
            if primitive is primitives.scan_p:
                return self._scan(params, values_in, place)
            if primitive is primitives.cond_p:
                branches = [
                    lambda *a, b=branch: self(b, a, place)
                    for branch in params["branches"]
                ]
                return list(jax.lax.switch(values_in[0], branches, *values_in[1:]))
            if primitive.name in INLINED:
                return self(params[INLINED[primitive.name]], values_in, place)
        result = primitive.bind(*values_in, **primitive.get_bind_params(params))
        return list(result) if primitive.multiple_results else [result]

    def _while_loop(self, params: Any, values_in: list[Any], place: Any) -> list[Any]:
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        for_test, rest = values_in[:tests], values_in[tests:]
        for_body, first = rest[:bodies], rest[bodies:]

        def test(carry: list[Any]) -> Any:
            return self(params["cond_jaxpr"], [*for_test, *carry], place)[0]

        def body(carry: list[Any]) -> list[Any]:
            return self(params["body_jaxpr"], [*for_body, *carry], place)

        return jax.lax.while_loop(test, body, first)

    def _scan(self, params: Any, values_in: list[Any], place: Any) -> list[Any]:
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, rest = values_in[:consts], values_in[consts:]

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
