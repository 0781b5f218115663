"""The items of a benchmark in one evaluation: marks by one of its scores, answers, prompts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sft_lab.runs.results import ItemAnswer


@dataclass(frozen=True)
class Outcomes:
    """The items of one evaluation.

    Attributes:
        marks: By item, the mean mark of its answers; without items that could not be graded.
        answers: By item, its answers.
        prompts: By item, the question of each answer.
        clusters: By item, its cluster.
    """

    marks: Mapping[str, float]
    answers: Mapping[str, tuple[str, ...]]
    prompts: Mapping[str, tuple[str, ...]]
    clusters: Mapping[str, str]

    @property
    def items(self) -> set[tuple[str, tuple[str, ...]]]:
        """Ids with prompts, by which items are the same in two runs."""
        return set(self.prompts.items())


def outcomes(answers: Sequence[ItemAnswer], mark: str) -> Outcomes:
    """Return the items of an evaluation by one of their marks; samples and turns are averaged.

    Args:
        answers: Of one evaluation.
        mark: Name of the mark, which ``BenchmarkRecord.marks`` gives for a score.
    """
    of_item: defaultdict[str, list[ItemAnswer]] = defaultdict(list)
    for answer in answers:
        of_item[answer.item].append(answer)
    marks: dict[str, float] = {}
    for item, found in of_item.items():
        values = [answer.marks.get(mark) for answer in found]
        # An item of several parts is right if all of them are.
        graded = [all(v) if isinstance(v, list) else v for v in values if v is not None]
        if graded:
            marks[item] = fmean(graded)
    return Outcomes(
        marks,
        {item: tuple(answer.completion for answer in found) for item, found in of_item.items()},
        {item: tuple(answer.prompt for answer in found) for item, found in of_item.items()},
        {item: found[0].cluster or item for item, found in of_item.items()},
    )


def same_items(found: Iterable[Outcomes]) -> bool:
    """Return whether evaluations asked the same items: ids and prompts agree."""
    first, *others = found
    return all(other.items == first.items for other in others)


def graded_in_all(found: Iterable[Outcomes]) -> list[str]:
    """Return the items that every one of these evaluations could grade, in the first's order."""
    first, *others = found
    return [item for item in first.marks if all(item in other.marks for other in others)]
