"""Means and paired tests of the cells of a study, only of what was measured alike."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.groups import Group
from sft_lab.analysis.outcomes import outcomes
from sft_lab.analysis.protocols import protocol_id
from sft_lab.errors import RequestError
from sft_lab.metrics.paired import Difference, holm, paired_over_seeds
from sft_lab.metrics.score import Score
from sft_lab.metrics.seeds import mean_over_seeds_and_items, over_seeds
from sft_lab.runs.results import ItemAnswer, Point, RunResult

MarksReader = Callable[[RunResult, str, int], list[ItemAnswer]]
"""Returns the answers of a run to a benchmark at a step; a RequestError where there are none."""

LEVEL = 0.05
"""Adjusted p below which a difference is said to be shown."""


@dataclass(frozen=True)
class Side:
    """What stands on one side of a comparison: one evaluation of a run for each seed.

    Attributes:
        label: Its name in tables.
        points: Runs and their evaluations, by seed.
    """

    label: str
    points: Mapping[int, tuple[RunResult, Point]]

    def having(self, ability: Ability) -> "Side":
        """Return the seeds that measured an ability."""
        return replace(
            self,
            points={s: (run, p) for s, (run, p) in self.points.items() if ability.key in p.scores},
        )

    def only(self, seeds: Collection[int]) -> "Side":
        """Return some of the seeds."""
        return replace(self, points={s: found for s, found in self.points.items() if s in seeds})


@dataclass(frozen=True)
class Comparison:
    """An ability on two sides.

    Attributes:
        family: The comparisons that are corrected together.
        ability: What is compared.
        before: Name of the first side.
        after: Name of the second side.
        difference: After minus before; None where they cannot be compared.
        why_not: Why they cannot.
        p_holm: p corrected for the family; 1 where there is no difference.
        seeds: Seeds on each side.
    """

    family: str
    ability: Ability
    before: str
    after: str
    difference: Difference | None
    why_not: str = ""
    p_holm: float = 1.0
    seeds: tuple[int, int] = (0, 0)

    @property
    def shown(self) -> bool:
        """Whether a difference is shown, corrected for many comparisons."""
        return self.difference is not None and self.p_holm < LEVEL

    def chosen_from(self, choices: int) -> "Comparison":
        """Return it with its p corrected by Bonferroni for a side chosen by its score."""
        if self.difference is None:
            return self
        p = min(self.difference.p * choices, 1.0)
        return replace(self, difference=replace(self.difference, p=p))

    @property
    def span(self) -> str:
        """Both sides in a few words: what they share is said once."""
        arms, axes = zip(
            *(side.rstrip(")").partition(" (")[::2] for side in self.sides), strict=True
        )
        names, values = zip(*(axis.partition(" = ")[::2] for axis in axes), strict=True)
        if arms[0] == arms[1] and names[0] == names[1] and all(values):
            return f"{arms[0]}, {names[0]} {values[0]} \N{RIGHTWARDS ARROW} {values[1]}"
        return f"{self.before} \N{RIGHTWARDS ARROW} {self.after}"

    @property
    def sides(self) -> tuple[str, str]:
        """Names of both sides."""
        return self.before, self.after


def end_of(group: Group) -> Side:
    """Return a group's evaluations at the end of training."""
    points = {seed: (run, run.last) for seed, run in group.runs.items()}
    return Side(group.label, {s: (run, last) for s, (run, last) in points.items() if last})


def boundary_of(group: Group, index: int) -> Side:
    """Return a group's evaluations at its n-th boundary; 0 is before training."""
    found = {
        seed: (run, run.boundaries[index])
        for seed, run in group.runs.items()
        if index < len(run.boundaries)
    }
    names = {point.after or "base" for _, point in found.values()}
    return Side(f"{group.label} after {' or '.join(sorted(names))}", found)


class Measurements:
    """Reads marks once and makes means and comparisons of them.

    Args:
        reader: Where marks come from.
    """

    def __init__(self, reader: MarksReader) -> None:
        self._reader = reader
        self._marks: dict[tuple[str, str, int], dict[str, float] | None] = {}

    def mean(self, ability: Ability, side: Side) -> Score | None:
        """Return the mean over a side's seeds and items.

        Where items cannot be read, it is the mean of the seeds' scores. None where no seed
        measured the ability, or seeds did so under different protocols.
        """
        side = side.having(ability)
        if not side.points or len(_protocols(ability, side)) > 1:
            return None
        if len(side.points) == 1:
            [(_, point)] = side.points.values()
            return point.scores[ability.key]
        tables = self._tables(ability, side)
        if tables is not None:
            return mean_over_seeds_and_items(_aligned(tables, _common(tables)))
        values = [point.scores[ability.key].value for _, point in side.points.values()]
        found = over_seeds(values)
        low, high = found.low, found.high
        assert low is not None
        assert high is not None
        return Score(found.value, low, high, found.n)

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

        def result(difference: Difference | None, why_not: str = "") -> Comparison:
            return Comparison(
                family, ability, before.label, after.label, difference, why_not, seeds=seeds
            )

        for side in (before, after):
            if not side.points:
                return result(None, f"no finished run of {side.label} measured it")
        if len(_protocols(ability, before) | _protocols(ability, after)) > 1:
            return result(None, "the runs were measured under different protocols")
        old, new = self._tables(ability, before), self._tables(ability, after)
        if old is None or new is None:
            return result(None, "the answers item by item are not there")
        items = _common([*old, *new])
        if not items:
            return result(None, "the runs have no graded item in common")
        old_marks, new_marks = _aligned(old, items), _aligned(new, items)
        return result(paired_over_seeds(old_marks, new_marks, same_runs=same_runs))

    def marks(self, run: RunResult, ability: Ability, step: int) -> dict[str, float] | None:
        """Return a run's marks at a step by item; None where they do not make up its score."""
        key = run.run_id, ability.key, step
        if key not in self._marks:
            self._marks[key] = self._read(run, ability, step)
        return self._marks[key]

    def answers(self, run: RunResult, ability: Ability, step: int) -> list[ItemAnswer]:
        """Return a run's answers at a step; empty where there are none."""
        try:
            return self._reader(run, ability.benchmark, step)
        except RequestError:
            return []

    def _read(self, run: RunResult, ability: Ability, step: int) -> dict[str, float] | None:
        point = next((p for p in run.points if p.step == step), None)
        if point is None or ability.key not in point.scores:
            return None
        recorded = point.scores[ability.key].value
        found = outcomes(self.answers(run, ability, step), ability.score_name, recorded)
        # A score that is no mean of marks, such as a corpus-level one, has no paired test.
        return dict(found.marks) if found is not None and found.marks else None

    def _tables(self, ability: Ability, side: Side) -> list[dict[str, float]] | None:
        found = [self.marks(run, ability, point.step) for run, point in side.points.values()]
        tables = [table for table in found if table]
        return tables if len(tables) == len(found) and _common(tables) else None


def corrected(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the comparisons of one family with their p corrected by Holm's method."""
    found = list(comparisons)
    p_values = {n: c.difference.p for n, c in enumerate(found) if c.difference is not None}
    adjusted = holm(p_values)
    return [replace(c, p_holm=adjusted.get(n, 1.0)) for n, c in enumerate(found)]


def _protocols(ability: Ability, side: Side) -> set[str]:
    return {protocol_id(run, ability.benchmark) for run, _ in side.points.values()}


def _matched(before: Side, after: Side) -> tuple[Side, Side]:
    """Return sides of several seeds each, or of one each: one against several has no test."""
    sizes = len(before.points), len(after.points)
    if min(sizes) != 1 or max(sizes) == 1:
        return before, after
    alone, several = (before, after) if sizes[0] == 1 else (after, before)
    [seed] = alone.points
    chosen = several.only([seed if seed in several.points else next(iter(several.points))])
    return (alone, chosen) if sizes[0] == 1 else (chosen, alone)


def _common(tables: Sequence[Mapping[str, float]]) -> list[str]:
    return [item for item in tables[0] if all(item in table for table in tables)]


def _aligned(tables: Sequence[Mapping[str, float]], items: Sequence[str]) -> list[list[float]]:
    return [[table[item] for item in items] for table in tables]
