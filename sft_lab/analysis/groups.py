"""Groups: the seeds of one arm at one point of its grid; what tables and curves show a mean of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import log2

import yaml

from sft_lab.analysis.study_results import Cell, Question
from sft_lab.runs.results import RunResult


@dataclass(frozen=True)
class Group:
    """The cells that differ by their seeds only.

    Attributes:
        question: The question's name.
        arm: The arm's name.
        axis: The grid's values by axis name.
        cells: Its cells, also those without a finished run.
    """

    question: str
    arm: str
    axis: Mapping[str, str]
    cells: tuple[Cell, ...]

    @property
    def runs(self) -> dict[int, RunResult]:
        """The runs that came to their end, by seed."""
        return {
            cell.seed: cell.result
            for cell in self.cells
            if cell.result is not None and cell.result.last is not None
        }

    @property
    def run_ids(self) -> frozenset[str]:
        """The ids of its runs: equal cells of several arms share them."""
        return frozenset(run.run_id for run in self.runs.values())

    @property
    def level(self) -> str:
        """The value of the first axis; empty without one."""
        return next(iter(self.axis.values()), "")

    def named(self, name: str) -> str:
        """Return a name with the values of all axes but the first, such as ``math (lr = 1e-3)``."""
        others = ", ".join(f"{axis} = {value}" for axis, value in list(self.axis.items())[1:])
        return f"{name} ({others})" if others else name

    @property
    def label(self) -> str:
        """How tables name it, such as ``dmt (k = 1/16)``."""
        axis = ", ".join(f"{name} = {value}" for name, value in self.axis.items())
        return f"{self.arm} ({axis})" if axis else self.arm


def groups_of(question: Question) -> list[Group]:
    """Return a question's groups, in the order of its cells."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[Cell]] = {}
    for cell in question.cells:
        found.setdefault((cell.arm, tuple(cell.axis.items())), []).append(cell)
    return [
        Group(question.name, arm, dict(axis), tuple(cells)) for (arm, axis), cells in found.items()
    ]


def series_of(question: Question) -> dict[str, list[Group]]:
    """Return the groups that differ by their first axis only, from the least amount up, by name."""
    found: dict[str, list[Group]] = {}
    for group in groups_of(question):
        found.setdefault(group.named(group.arm), []).append(group)
    return {name: by_amount(groups) for name, groups in found.items()}


def distinct(groups: Sequence[Group]) -> list[Group]:
    """Return groups without those whose runs are all those of an earlier one, such as k = 0."""
    found: dict[frozenset[str], Group] = {}
    for group in groups:
        found.setdefault(group.run_ids or frozenset([group.label]), group)
    return list(found.values())


def amount(level: str) -> float | None:
    """Return a share or an amount as a number; None where it is no number.

    >>> amount("1/64"), amount("{rows: 500}"), amount("code first")
    (0.015625, 500.0, None)
    """
    try:
        return float(Fraction(level.strip()))
    except (ValueError, ZeroDivisionError):
        pass
    try:
        value = yaml.safe_load(level)
    except yaml.YAMLError:
        return None
    numbers = list(value.values()) if isinstance(value, dict) else [value]
    if len(numbers) != 1 or isinstance(numbers[0], bool):
        return None
    return float(numbers[0]) if isinstance(numbers[0], int | float) else None


def by_amount(groups: Sequence[Group]) -> list[Group]:
    """Return groups from the least amount to the greatest; in their own order without amounts."""
    amounts = {group.level: amount(group.level) for group in groups}
    if any(value is None for value in amounts.values()):
        return list(groups)
    return sorted(groups, key=lambda group: amounts[group.level] or 0.0)


def positions(levels: Sequence[str]) -> dict[str, float]:
    """Return where each level stands on a logarithmic axis, 0 one step left of the least amount.

    Levels that are no amounts stand side by side in their own order.

    >>> positions(["1", "1/4", "0"])
    {'1': 0.0, '1/4': -2.0, '0': -4.0}
    """
    unique = list(dict.fromkeys(levels))
    amounts = {level: amount(level) for level in unique}
    if any(value is None or value < 0 for value in amounts.values()):
        return {level: float(place) for place, level in enumerate(unique)}
    logs = sorted(log2(value) for value in amounts.values() if value)
    step = min((b - a for a, b in pairwise(logs) if b > a), default=1.0)
    zero = (logs[0] if logs else 0.0) - step
    return {level: log2(value) if value else zero for level, value in amounts.items()}
