"""Means and paired tests of groups of runs, only of what was measured alike."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.outcomes import Outcomes, graded_in_all, outcomes, same_items
from sft_lab.analysis.protocols import protocol_id
from sft_lab.errors import RequestError
from sft_lab.metrics.paired import Difference, holm, paired_over_seeds
from sft_lab.metrics.score import Score
from sft_lab.metrics.seeds import mean_over_seeds_and_items, over_seeds
from sft_lab.runs.results import ItemAnswer, Point, RunResult

MarksReader = Callable[[RunResult, str, int], list[ItemAnswer]]
"""Returns a run's answers to a benchmark at a step; raises a RequestError if there are none."""

LEVEL = 0.05
"""Significance level: a difference is shown if its p, corrected for its family, is below it."""

Conclusion = Literal["higher", "lower", "no difference shown"]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: one evaluation of a run for each seed.

    Attributes:
        label: Its name in tables.
        points: Runs and their evaluations, by seed.
    """

    label: str
    points: Mapping[int, tuple[RunResult, Point]]

    @property
    def stage(self) -> str:
        """The stage that ended there, ``base`` before training; of several names, all of them."""
        return " or ".join(sorted({point.after or "base" for _, point in self.points.values()}))

    def having(self, ability: Ability) -> "Side":
        """Return the seeds that measured an ability."""
        return self.only(
            [s for s, (_, point) in self.points.items() if ability.key in point.scores]
        )

    def only(self, seeds: Collection[int]) -> "Side":
        """Return some of the seeds."""
        return replace(self, points={s: found for s, found in self.points.items() if s in seeds})


@dataclass(frozen=True)
class Comparison:
    """An ability on two sides: the one kind of comparison, of every command.

    Attributes:
        family: The comparisons that are corrected together.
        ability: What is compared.
        before: Name of the first side.
        after: Name of the second side.
        difference: After minus before, on the items that both sides graded; None without a test.
        why_not: Why there is no test; empty if there is one.
        p_holm: p corrected for the family; 1 without a test.
        seeds: Seeds on each side.
        gained: Ids of the items right only after, in every seed; none where marks are ratings.
        lost: Ids of the items right only before, in every seed.
    """

    family: str
    ability: Ability
    before: str
    after: str
    difference: Difference | None
    why_not: str = ""
    p_holm: float = 1.0
    seeds: tuple[int, int] = (0, 0)
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def shown(self) -> bool:
        """Whether a difference is shown, corrected for many comparisons."""
        return self.difference is not None and self.p_holm < LEVEL

    @property
    def conclusion(self) -> Conclusion | None:
        """What the corrected test shows; None without a test."""
        if self.difference is None:
            return None
        if not self.shown:
            return "no difference shown"
        return "higher" if self.difference.value > 0 else "lower"

    def chosen_from(self, choices: int) -> "Comparison":
        """Return it with its p corrected by Bonferroni for a side chosen by its score."""
        if self.difference is None:
            return self
        p = min(self.difference.p * choices, 1.0)
        return replace(self, difference=replace(self.difference, p=p))

    @property
    def span(self) -> str:
        """Both sides in a few words: what they share is written once."""
        sides = (self.before, self.after)
        arms, axes = zip(*(side.rstrip(")").partition(" (")[::2] for side in sides), strict=True)
        names, values = zip(*(axis.partition(" = ")[::2] for axis in axes), strict=True)
        if arms[0] == arms[1] and names[0] == names[1] and all(values):
            return f"{arms[0]}, {names[0]} {values[0]} \N{RIGHTWARDS ARROW} {values[1]}"
        return f"{self.before} \N{RIGHTWARDS ARROW} {self.after}"


def end_of(group: RunGroup) -> Side:
    """Return a group's evaluations at the end of training."""
    points = {seed: (run, run.last) for seed, run in group.runs.items()}
    return Side(group.label, {s: (run, last) for s, (run, last) in points.items() if last})


def boundary_of(group: RunGroup, index: int) -> Side:
    """Return a group's evaluations at its n-th boundary; 0 is before training."""
    found = {
        seed: (run, run.boundaries[index])
        for seed, run in group.runs.items()
        if index < len(run.boundaries)
    }
    return Side(f"{group.label} after {Side('', found).stage}", found)


class Measurements:
    """Reads marks once and computes means and comparisons from them.

    Args:
        reader: Where marks come from.
        across_protocols: Whether to compare also what was measured under different protocols, as
            far as it is the same items.
    """

    def __init__(self, reader: MarksReader, across_protocols: bool = False) -> None:
        self._reader = reader
        self._across_protocols = across_protocols
        self._outcomes: dict[tuple[str, str, int], Outcomes | None] = {}

    def mean(self, ability: Ability, side: Side) -> Score | None:
        """Return the mean over a side's seeds and items.

        If items cannot be read, it is the mean of the seeds' scores. None if no seed measured the
        ability, or seeds did so under different protocols.
        """
        side = side.having(ability)
        if not side.points or self._protocols_differ(ability, side):
            return None
        if len(side.points) == 1:
            [(_, point)] = side.points.values()
            return point.scores[ability.key]
        found = self._items(ability, side)
        if found is not None and same_items(found) and (items := graded_in_all(found)):
            return mean_over_seeds_and_items(_marks(found, items), _clusters(found[0], items))
        values = [point.scores[ability.key].value for _, point in side.points.values()]
        mean = over_seeds(values)
        assert mean.low is not None
        assert mean.high is not None
        return Score(mean.value, mean.low, mean.high, mean.n)

    def compare(
        self,
        family: str,
        ability: Ability,
        before: Side,
        after: Side,
        same_runs: bool = False,
    ) -> Comparison:
        """Compare an ability on two sides, item by item.

        Args:
            family: The comparisons that are corrected together.
            ability: What is compared.
            before: The first side.
            after: The second side.
            same_runs: Whether seed by seed both sides are the same run; each is then compared
                with itself, on the seeds that were measured on both sides.
        """
        before, after = before.having(ability), after.having(ability)
        if same_runs:
            before, after = before.only(after.points), after.only(before.points)
        else:
            before, after = _matched(before, after)
        seeds = len(before.points), len(after.points)
        result = Comparison(family, ability, before.label, after.label, None, seeds=seeds)
        for side in (before, after):
            if not side.points:
                return replace(result, why_not=f"no finished run of {side.label} measured it")
        if self._protocols_differ(ability, before, after):
            return replace(result, why_not="the runs were measured under different protocols")
        old, new = self._items(ability, before), self._items(ability, after)
        if old is None or new is None:
            return replace(result, why_not="there are no marks of single items for this score")
        if not same_items([*old, *new]):
            return replace(result, why_not="the items differ")
        items = graded_in_all([*old, *new])
        if not items:
            return replace(result, why_not="the runs have no graded item in common")
        marks = _marks(old, items), _marks(new, items)
        was, now = ([set(of_item) for of_item in zip(*side, strict=True)] for side in marks)
        changes = list(zip(items, was, now, strict=True))
        return replace(
            result,
            difference=paired_over_seeds(*marks, same_runs, _clusters(old[0], items)),
            gained=tuple(item for item, a, b in changes if (a, b) == ({0}, {1})),
            lost=tuple(item for item, a, b in changes if (a, b) == ({1}, {0})),
        )

    def outcomes(self, run: RunResult, ability: Ability, step: int) -> Outcomes | None:
        """Return a run's items at a step; None if the score is not a mean of their marks."""
        key = run.run_id, ability.key, step
        if key not in self._outcomes:
            self._outcomes[key] = self._read(run, ability, step)
        return self._outcomes[key]

    def _read(self, run: RunResult, ability: Ability, step: int) -> Outcomes | None:
        # A score that is not a mean of marks, such as a perplexity, has no paired test.
        mark = run.benchmarks[ability.benchmark].marks.get(ability.score_name)
        if mark is None:
            return None
        try:
            answers = self._reader(run, ability.benchmark, step)
        except RequestError:
            return None
        found = outcomes(answers, mark)
        return found if found.marks else None

    def _items(self, ability: Ability, side: Side) -> list[Outcomes] | None:
        found = [self.outcomes(run, ability, point.step) for run, point in side.points.values()]
        known = [items for items in found if items is not None]
        return known if len(known) == len(found) else None

    def _protocols_differ(self, ability: Ability, *sides: Side) -> bool:
        runs = [run for side in sides for run, _ in side.points.values()]
        ids = {protocol_id(run, ability.benchmark) for run in runs}
        return len(ids) > 1 and not self._across_protocols


def corrected(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the comparisons of one family with their p corrected by Holm's method."""
    found = list(comparisons)
    p_values = {n: c.difference.p for n, c in enumerate(found) if c.difference is not None}
    adjusted = holm(p_values)
    return [replace(c, p_holm=adjusted.get(n, 1.0)) for n, c in enumerate(found)]


def _matched(before: Side, after: Side) -> tuple[Side, Side]:
    """Return sides of several seeds each, or of one each: one against several has no test."""
    sizes = len(before.points), len(after.points)
    if min(sizes) != 1 or max(sizes) == 1:
        return before, after
    alone, several = (before, after) if sizes[0] == 1 else (after, before)
    [seed] = alone.points
    chosen = several.only([seed if seed in several.points else next(iter(several.points))])
    return (alone, chosen) if sizes[0] == 1 else (chosen, alone)


def _clusters(found: Outcomes, items: Sequence[str]) -> list[str]:
    return [found.clusters[item] for item in items]


def _marks(found: Sequence[Outcomes], items: Sequence[str]) -> list[list[float]]:
    return [[run.marks[item] for item in items] for run in found]
