"""What a server's tokens cost."""

from typing import NamedTuple


class Prices(NamedTuple):
    """Prices of a million tokens, in any currency.

    Attributes:
        generated: of tokens that the server writes.
        read: of tokens that it reads; None for the price of generated tokens.
    """

    generated: float
    read: float | None = None

    def cost(self, generated: float, read: float) -> float:
        """The price of some tokens.

        >>> Prices(2.0, 0.5).cost(1e6, 2e6), Prices(2.0).cost(1e6, 2e6)
        (3.0, 6.0)
        """
        each = self.generated if self.read is None else self.read
        return (self.generated * generated + each * read) / 1e6

    def __str__(self) -> str:
        """For a sentence that ends with the prices."""
        if self.read is None:
            return f"{self.generated:g} per million tokens, generated or read"
        return f"{self.generated:g} per million generated and {self.read:g} read"
