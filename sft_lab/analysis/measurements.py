"""Means and paired tests of groups of runs, only of what was measured alike."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.family import LEVEL, Family
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.outcomes import Outcomes, graded_in_all, outcomes, same_items
from sft_lab.analysis.protocols import protocol_id
from sft_lab.errors import RequestError
from sft_lab.metrics.equivalence import MARGIN, equivalence_p, no_loss_p, smallest_difference
from sft_lab.metrics.paired import Difference, paired_over_seeds
from sft_lab.metrics.score import Score
from sft_lab.metrics.seeds import mean_over_seeds_and_items, over_seeds
from sft_lab.runs.results import ItemAnswer, Point, RunResult

MarksReader = Callable[[RunResult, str, int], list[ItemAnswer]]
"""Returns a run's answers to a benchmark at a step; raises a RequestError if there are none."""

Conclusion = Literal["not tested", "higher", "lower", "no effect", "inconclusive"]


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
        """Return the seeds that measured an ability on all its items."""
        return self.only(
            [
                seed
                for seed, (_, point) in self.points.items()
                if ability.key in point.scores and ability.benchmark not in point.partial
            ]
        )

    @property
    def evaluations(self) -> frozenset[tuple[str, int]]:
        """Run and step of each of its evaluations."""
        return frozenset((run.run_id, point.step) for run, point in self.points.values())

    def only(self, seeds: Collection[int]) -> "Side":
        """Return some of the seeds."""
        return replace(self, points={s: found for s, found in self.points.items() if s in seeds})


@dataclass(frozen=True)
class Comparison:
    """An ability on two sides: the one kind of comparison, of every command.

    Attributes:
        place: Where it is shown, such as the question's name.
        ability: What is compared.
        before: Name of the first side.
        after: Name of the second side.
        difference: After minus before, on the items that both sides graded; None without a test.
        why_not: Why there is no test; empty if there is one.
        is_learned: Whether there was something to compare: see ``Measurements``.
        margin: The least difference that matters, in the unit of the score.
        p_holm: p of a difference, corrected for the family; 1 without a test.
        p_equivalent: p of equivalence within the margin, corrected; 1 without a test.
        p_no_loss: p of a loss smaller than the margin, corrected where a claim asks for it.
        smallest: The smallest difference that this test shows in 80 % of cases, at the level that
            the correction left for it.
        seeds: Seeds on each side.
        gained: Ids of the items right only after, in every seed; none where marks are ratings.
        lost: Ids of the items right only before, in every seed.
        clusters: Number of clusters of the compared items.
        test: What is tested, equal for the same evaluations wherever they are compared.
    """

    place: str
    ability: Ability
    before: str
    after: str
    difference: Difference | None
    why_not: str = ""
    is_learned: bool = True
    margin: float = MARGIN
    p_holm: float = 1.0
    p_equivalent: float = 1.0
    p_no_loss: float = 1.0
    smallest: float = inf
    seeds: tuple[int, int] = (0, 0)
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    clusters: int = 0
    test: Hashable = None

    @property
    def shown(self) -> bool:
        """Whether a difference is shown, corrected for many comparisons."""
        return self.difference is not None and self.p_holm < LEVEL

    @property
    def is_equivalent(self) -> bool:
        """Return whether the corrected tests rule out a difference of the margin or more."""
        return self.difference is not None and self.p_equivalent < LEVEL

    @property
    def conclusion(self) -> Conclusion | None:
        """Return the result of the corrected tests of these runs; None without a test."""
        if self.difference is None:
            return None
        if not self.is_learned:
            return "not tested"
        if self.shown:
            return "higher" if self.difference.value > 0 else "lower"
        return "no effect" if self.is_equivalent else "inconclusive"

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


@dataclass
class Measurements:
    """Reads marks once and computes means and comparisons from them.

    An ability is learned, so that a comparison of it can show something, if at some boundary of a
    run on either side the lower end of its interval lies above the score of guessing, and some
    boundary differs from the base. Runs that are compared with themselves need the first only.

    Args:
        reader: Where marks come from.
        across_protocols: Whether to compare also what was measured under different protocols, as
            far as it is the same items.
        margin: The least difference that matters, as a part of the score's scale.
        family: The tests that are corrected together.
    """

    reader: MarksReader
    across_protocols: bool = False
    margin: float = MARGIN
    family: Family = field(default_factory=Family)
    _outcomes: dict[tuple[str, str, int], Outcomes | None] = field(default_factory=dict)
    _means: dict[Hashable, Score | None] = field(default_factory=dict)
    _differences: dict[Hashable, Difference] = field(default_factory=dict)
    _comparisons: dict[Hashable, Comparison] = field(default_factory=dict)

    def within(self, family: Family) -> "Measurements":
        """Return the same measurements, tested within another family."""
        found = copy(self)  # shares what has been read and computed
        found.family = family
        return found

    def mean(self, ability: Ability, side: Side) -> Score | None:
        """Return the mean over a side's seeds and items.

        If items cannot be read, it is the mean of the seeds' scores. None if no seed measured the
        ability, or seeds did so under different protocols.
        """
        side = side.having(ability)
        key = ability.key, side.evaluations
        if key not in self._means:
            self._means[key] = self._mean(ability, side)
        return self._means[key]

    def _mean(self, ability: Ability, side: Side) -> Score | None:
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
        place: str,
        ability: Ability,
        before: Side,
        after: Side,
        same_runs: bool = False,
        chosen_from: int = 1,
    ) -> Comparison:
        """Compare an ability on two sides, item by item.

        Args:
            place: Where the comparison is shown.
            ability: What is compared.
            before: The first side.
            after: The second side.
            same_runs: Whether seed by seed both sides are the same run; each is then compared
                with itself, on the seeds that were measured on both sides.
            chosen_from: The number of evaluations from which a side was chosen by its score: p is
                multiplied by it (Bonferroni).
        """
        key = place, ability, before.label, after.label, before.evaluations, after.evaluations
        if (key, same_runs, chosen_from) not in self._comparisons:
            found = self._compare(place, ability, before, after, same_runs, chosen_from)
            self._comparisons[key, same_runs, chosen_from] = found
        found = self._comparisons[key, same_runs, chosen_from]
        if (difference := found.difference) is None:
            return found
        p_equivalent = min(equivalence_p(difference, found.margin) * chosen_from, 1.0)
        return replace(
            found,
            p_holm=self.family.corrected("difference", found.test, difference.p),
            p_equivalent=self.family.corrected("margin", found.test, p_equivalent),
            smallest=smallest_difference(difference, self.family.level / chosen_from),
        )

    def _compare(
        self,
        place: str,
        ability: Ability,
        before: Side,
        after: Side,
        same_runs: bool,
        chosen_from: int,
    ) -> Comparison:
        before, after = before.having(ability), after.having(ability)
        if same_runs:
            before, after = before.only(after.points), after.only(before.points)
        else:
            before, after = _matched(before, after)
        seeds = len(before.points), len(after.points)
        margin = self.margin * (ability.scale[1] - ability.scale[0])
        result = Comparison(
            place, ability, before.label, after.label, None, margin=margin, seeds=seeds
        )
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
        sides = [before] if same_runs else [before, after]
        return replace(
            result,
            difference=self._difference(ability, before, after, same_runs, chosen_from),
            is_learned=any(self._is_learned(ability, side, not same_runs) for side in sides),
            gained=tuple(item for item, a, b in changes if (a, b) == ({0}, {1})),
            lost=tuple(item for item, a, b in changes if (a, b) == ({1}, {0})),
            clusters=len(set(_clusters(old[0], items))),
            test=(
                ability.key,
                frozenset([before.evaluations, after.evaluations]),
                chosen_from,
            ),
        )

    def no_loss(self, comparison: Comparison) -> Comparison:
        """Return a comparison with its test of no loss, which is one more test of the family."""
        if comparison.difference is None:
            return comparison
        p = no_loss_p(comparison.difference, comparison.margin)
        # The direction belongs to the test: what loses nothing one way may the other way.
        test = comparison.test, comparison.before, comparison.after
        return replace(comparison, p_no_loss=self.family.corrected("margin", test, p))

    def _difference(
        self, ability: Ability, before: Side, after: Side, same_runs: bool, chosen_from: int = 1
    ) -> Difference | None:
        """Return the difference on the items graded on both sides; None if there are none."""
        key = ability.key, before.evaluations, after.evaluations, chosen_from
        if key not in self._differences:
            old, new = self._items(ability, before), self._items(ability, after)
            if old is None or new is None or not (items := graded_in_all([*old, *new])):
                return None
            marks = _marks(old, items), _marks(new, items)
            found = paired_over_seeds(*marks, same_runs, _clusters(old[0], items))
            self._differences[key] = replace(found, p=min(found.p * chosen_from, 1.0))
        return self._differences[key]

    def _is_learned(self, ability: Ability, side: Side, from_base: bool) -> bool:
        runs = {seed: run for seed, (run, _) in side.points.items()}
        chance = max(run.benchmarks[ability.benchmark].chance for run in runs.values())
        group = RunGroup(side.label, runs)
        boundaries = [boundary_of(group, n).having(ability) for n in range(group.num_boundaries)]
        means = [self.mean(ability, boundary) for boundary in boundaries]
        if not any(mean is not None and mean.low > chance for mean in means):
            return False
        base_steps = {point.step for _, point in boundaries[0].points.values()}
        if not from_base or base_steps != {0}:  # the base was not measured
            return True
        for boundary in boundaries[1:]:
            base = boundaries[0].only(boundary.points)
            change = self._difference(ability, base, boundary.only(base.points), same_runs=True)
            if change is None or change.low > 0 or change.high < 0:
                return True
        return False

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
            answers = self.reader(run, ability.benchmark, step)
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
        return len(ids) > 1 and not self.across_protocols


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
