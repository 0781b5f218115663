"""Groups: runs that differ by their seed only; what tables and curves show a mean of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from math import log2

import yaml

from sft_lab.analysis.abilities import Ability, abilities_in
from sft_lab.analysis.study_results import Cell, Question, StudyResults
from sft_lab.runs.results import RunResult


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ by their seed only.

    Attributes:
        arm: Name of their arm in a study; outside one, the name of the run or of its seeds.
        runs: By seed; in a study, only those that have finished.
        axis: The values of the arm's grid by axis name; empty without a grid.
        question: Name of the study's question; empty outside a study.
        control: The control that it is, of the group with its arm and axis; else empty.
        alone: The source that the control trains alone, if it does.
    """

    arm: str
    runs: Mapping[int, RunResult]
    axis: Mapping[str, str] = field(default_factory=dict)
    question: str = ""
    control: str = ""
    alone: str = ""

    @property
    def run_ids(self) -> frozenset[str]:
        """The ids of its runs: equal cells of several arms share them."""
        return frozenset(run.run_id for run in self.runs.values())

    @property
    def is_finished(self) -> bool:
        """Whether every run was evaluated at the end of its last stage."""
        return all(run.last is not None for run in self.runs.values())

    @property
    def num_boundaries(self) -> int:
        """Boundaries that every run has reached; the first is before training."""
        return min((len(run.boundaries) for run in self.runs.values()), default=0)

    @property
    def abilities(self) -> list[Ability]:
        """The abilities that every run measures by the same score."""
        first, *others = (abilities_in(run) for run in self.runs.values())
        keys = [{ability.key for ability in other} for other in others]
        return [ability for ability in first if all(ability.key in found for found in keys)]

    @property
    def level(self) -> str:
        """The value of the first axis; empty without one."""
        return next(iter(self.axis.values()), "")

    @property
    def label(self) -> str:
        """Its name in tables, such as ``dmt (k = 1/16)``."""
        axis = ", ".join(f"{name} = {value}" for name, value in self.axis.items())
        name = self.arm
        if self.control:
            name = f"{f'{self.alone} alone' if self.alone else name}, {self.control}"
        return f"{name} ({axis})" if axis else name

    def named(self, name: str) -> str:
        """Return a name with the values of all axes but the first, such as ``math (lr = 1e-3)``."""
        others = ", ".join(f"{axis} = {value}" for axis, value in list(self.axis.items())[1:])
        return f"{name} ({others})" if others else name


def groups_of(question: Question) -> list[RunGroup]:
    """Return a question's groups, in the order of its cells, with the runs that have finished.

    Its controls are not among them, see ``controls_of``.
    """
    return [group for group in _all_groups(question) if not group.control]


def controls_of(results: StudyResults, group: RunGroup) -> list[RunGroup]:
    """Return the finished controls of a group, from every question that has the same runs."""
    found = []
    for question in results.questions:
        groups = _all_groups(question)
        same = {
            (other.arm, tuple(other.axis.items()))
            for other in groups
            if not other.control and other.run_ids & group.run_ids
        }
        found += [
            other
            for other in groups
            if other.control and other.runs and (other.arm, tuple(other.axis.items())) in same
        ]
    return distinct(found)


def with_all_seeds(results: StudyResults) -> StudyResults:
    """Return a study in which each group has the seeds of equal groups of other questions.

    Groups are equal but for their seeds if they share a run, since equal cells share one.
    """
    groups = [group for question in results.questions for group in _all_groups(question)]
    seeds: dict[str, dict[int, RunResult]] = {}
    for group in groups:
        shared = [seeds[run_id] for run_id in group.run_ids if run_id in seeds]
        runs = {s: run for known in [*shared, group.runs] for s, run in known.items()}
        seeds |= {run.run_id: runs for run in runs.values()}
    questions = []
    for question in results.questions:
        cells = list(question.cells)
        for group in _all_groups(question):
            every = {s: run for i in group.run_ids for s, run in seeds[i].items()}
            cells += [
                Cell(question.name, group.arm, group.axis, s, run, group.control, group.alone)
                for s, run in sorted(every.items())
                if s not in group.runs
            ]
        questions.append(replace(question, cells=cells))
    return replace(results, questions=questions)


def _all_groups(question: Question) -> list[RunGroup]:
    found: dict[tuple[str, tuple[tuple[str, str], ...], str, str], dict[int, RunResult]] = {}
    for cell in question.cells:
        key = cell.arm, tuple(cell.axis.items()), cell.control, cell.alone
        runs = found.setdefault(key, {})
        if cell.result is not None and cell.result.last is not None:
            runs[cell.seed] = cell.result
    return [
        RunGroup(arm, runs, dict(axis), question.name, control, alone)
        for (arm, axis, control, alone), runs in found.items()
    ]


def series_of(question: Question) -> dict[str, list[RunGroup]]:
    """Return the groups that differ by their first axis only, from the least amount up, by name."""
    found: dict[str, list[RunGroup]] = {}
    for group in groups_of(question):
        found.setdefault(group.named(group.arm), []).append(group)
    return {name: by_amount(groups) for name, groups in found.items()}


def distinct(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return groups without those whose runs are all those of an earlier one, such as k = 0."""
    found: dict[frozenset[str], RunGroup] = {}
    for group in groups:
        found.setdefault(group.run_ids or frozenset([group.label]), group)
    return list(found.values())


def amount(level: str) -> float | None:
    """Return a share or an amount as a number, or None if it is not one.

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


def by_amount(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return groups from the least amount to the greatest; in their own order without amounts."""
    amounts = {group.level: amount(group.level) for group in groups}
    if any(value is None for value in amounts.values()):
        return list(groups)
    return sorted(groups, key=lambda group: amounts[group.level] or 0.0)


def positions(levels: Sequence[str]) -> dict[str, float]:
    """Return the place of each level on a logarithmic axis, 0 one step left of the least amount.

    Levels that are not amounts are placed one after the other in their own order.

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
