"""The tests of a report or a comparison of runs, which are corrected together by Holm's method."""

from collections.abc import Callable, Hashable
from typing import Literal, TypeVar

from sft_lab.metrics.paired import holm

LEVEL = 0.05
"""Significance level: a difference is shown if its p, corrected for its family, is below it."""

Kind = Literal["difference", "margin"]
T = TypeVar("T")


class Family:
    """Collects tests and, once closed, returns their corrected p.

    Two kinds of errors are each kept below 5 % over the whole family: to show a difference where
    there is none, and to rule out a difference that is there (``margin``: tests of equivalence and
    of no loss). Each test counts once, in however many tables it is shown.
    """

    def __init__(self) -> None:
        self._p_values: dict[Kind, dict[Hashable, float]] = {"difference": {}, "margin": {}}
        self._corrected: dict[Kind, dict[Hashable, float]] | None = None

    @property
    def is_closed(self) -> bool:
        """Return whether the tests are corrected."""
        return self._corrected is not None

    def close(self) -> None:
        """Correct the tests so far; further ones are refused."""
        self._corrected = {kind: holm(found) for kind, found in self._p_values.items()}

    def corrected(self, kind: Kind, test: Hashable, p: float) -> float:
        """Return the corrected p of a test; 1 before the family is closed.

        Raises:
            ValueError: If the test was not among those that were collected.
        """
        if self._corrected is None:
            self._p_values[kind][test] = p
            return 1.0
        if test not in self._corrected[kind]:
            raise ValueError(f"Tests depend on their own correction: {test} is a new one.")
        return self._corrected[kind][test]

    def size(self, kind: Kind = "difference") -> int:
        """Return the number of tests."""
        return len(self._p_values[kind])

    @property
    def level(self) -> float:
        """The level that a test of a difference which was not shown would have had to reach.

        It is 5 % over the number of tests that are left once those shown are taken out: by Holm's
        method, the test would have been among these with a p below it.
        """
        found = (self._corrected or {"difference": {}})["difference"]
        left = sum(p >= LEVEL for p in found.values())
        return LEVEL / max(left, 1)


def corrected_together(build: Callable[[Family], T]) -> T:
    """Return what is built from tests that are corrected for their number.

    It is built twice: once to collect the tests, and once with their corrected p.
    """
    family = Family()
    build(family)
    family.close()
    return build(family)
