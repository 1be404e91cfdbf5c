"""Choose the shapes for which a program is compiled.

A program of a larger shape can do the work of a smaller one, but is slower. The waste
is summed, and a smaller shape is compiled when it would have saved its own cost of
compilation. The total cost is at most twice that of the best choice in hindsight, as in
the ski rental problem (Karlin et al., Algorithmica 3, 1988). Work is counted and not
timed, so that a repeated run uses the same shapes and has the same rounding errors.
"""

from collections import defaultdict
from collections.abc import Callable

Shape = tuple[int, ...]

ATTENDED, OWN = 512, 16
"""ATTENDED: attending to this many positions takes as long as the other work for one
token of one row. OWN: this many rows take as long as the constant cost of a turn of all
rows. Both were measured with 135M weights on two cores."""


def cost_of_writing(shape: Shape) -> float:
    """Drawing one token of all rows: ``(room, rows)``."""
    room, rows = shape
    return (1 + room / ATTENDED) * (rows + OWN)


def cost_of_reading(shape: Shape) -> float:
    """Reading steps of ``width`` tokens after a past: ``(width, room, rows)``."""
    width, room, rows = shape
    return (1 + room / ATTENDED) * width * rows


class Shapes:
    """Shapes of one program in one run.

    Attributes:
        known: shapes with which it has been called.

    Args:
        cost: cost of one turn of a program of some shape, in tokens of one row.
        price: cost of compiling a new shape, in the same unit.
        exact: number of leading axes that must equal those of the work.
        max_shapes: the maximum number of shapes, except for work that none of these can
            do.
    """

    def __init__(
        self,
        cost: Callable[[Shape], float],
        price: float,
        *,
        exact: int = 0,
        max_shapes: int = 12,
    ) -> None:
        self.cost, self.price, self.exact, self.max_shapes = (
            cost,
            price,
            exact,
            max_shapes,
        )
        self.known: set[Shape] = set()
        self.waste: defaultdict[Shape, float] = defaultdict(float)

    def find_shapes(self, min_shape: Shape) -> list[Shape]:
        """Known shapes that can do the work of a shape, the cheapest first."""
        fits = [
            shape
            for shape in self.known
            if shape[: self.exact] == min_shape[: self.exact]
            and all(a >= b for a, b in zip(shape, min_shape, strict=True))
        ]
        return sorted(fits, key=self.cost)

    def choose(self, min_shape: Shape, coarse: Shape) -> Shape:
        """The shape to call the program with.

        Args:
            min_shape: the smallest shape that can do the work.
            coarse: shape that is compiled if no known shape can do the work and shapes
                have a price.
        """
        fits = self.find_shapes(min_shape)
        if not fits:
            shape = coarse if self.price else min_shape
        elif self.waste[min_shape] >= self.price and len(self.known) < self.max_shapes:
            shape = min_shape
        else:
            shape = fits[0]
        self.known.add(shape)
        return shape

    def record_waste(self, min_shape: Shape, used: Shape, turns: int = 1) -> float:
        """Record the waste of a call, and return it.

        Args:
            min_shape, used: the argument and the result of `choose`.
            turns: number of turns of the program in this call.
        """
        waste = turns * (self.cost(used) - self.cost(min_shape))
        self.waste[min_shape] += waste
        return waste
