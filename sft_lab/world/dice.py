"""Draw from seeds with the same results in every Python version, and split off held-out data."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Draw at random, seeded by name and number, using ``random()`` alone.

    Python promises stable results across versions for ``Random.random()`` only, so whole numbers,
    picks and shuffles are derived from it here.

    >>> Dice("doctest", 0).integer(1, 6) == Dice("doctest", 0).integer(1, 6)
    True
    """

    def __init__(self, purpose: str, seed: int) -> None:
        digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from ``low`` to ``high``, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options, all equally likely."""
        return options[self.integer(0, len(options) - 1)]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Return ``count`` different options in random order."""
        rest = list(options)
        return [rest.pop(self.integer(0, len(rest) - 1)) for _ in range(count)]

    def chance(self, probability: float) -> bool:
        """Return true with the given probability."""
        return self._random.random() < probability


def held_out(structure: str, one_in: int) -> bool:
    """Return whether a structure belongs to the benchmark, as about one in ``one_in`` does.

    A stable hash of the key decides, so adding structures never moves the others.
    """
    digest = hashlib.sha256(structure.encode()).digest()
    return int.from_bytes(digest[:8], "big") % one_in == 0
