"""The items of a benchmark in one evaluation: marks by one of its scores, answers, prompts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from statistics import fmean
from typing import Any

from sft_lab.runs.results import ItemAnswer


@dataclass(frozen=True)
class Outcomes:
    """The items of one evaluation.

    Attributes:
        marks: By item, the mean mark of its answers; without items that could not be graded.
        answers: By item, its answers.
        prompts: By item, the question of each answer.
    """

    marks: Mapping[str, float]
    answers: Mapping[str, tuple[str, ...]]
    prompts: Mapping[str, tuple[str, ...]]

    @property
    def items(self) -> set[tuple[str, tuple[str, ...]]]:
        """Ids with prompts, by which items are the same in two runs."""
        return set(self.prompts.items())


def outcomes(
    answers: Sequence[ItemAnswer], score_name: str, score: float | None
) -> Outcomes | None:
    """Return the items of an evaluation, by the mark that a score of the benchmark is a mean of.

    That is the mark of its name or of its name's end, ``loose`` of ``prompt_loose``, else the first
    one; an item of several parts is right where all of them are. Both turns of an MT-Bench question
    are one item.

    Args:
        answers: Of one evaluation.
        score_name: The score.
        score: What the run has recorded as that score.

    Returns:
        The items; None if that score is not a mean of marks, as a perplexity.
    """
    of_item: defaultdict[str, list[ItemAnswer]] = defaultdict(list)
    for answer in answers:
        of_item[_item_id(answer.id)].append(answer)
    marks: dict[str, float] = {}
    graded: list[float] = []
    for item, found in of_item.items():
        values = [_mark(answer.marks, score_name) for answer in found]
        numbers = [float(value) for value in values if isinstance(value, bool | int | float)]
        if numbers:
            marks[item] = fmean(numbers)
            graded += numbers
    means = (fmean(graded), fmean(marks.values())) if graded else ()
    if score is not None and not any(isclose(mean, score, abs_tol=1e-6) for mean in means):
        return None
    return Outcomes(
        marks,
        {item: tuple(answer.completion for answer in found) for item, found in of_item.items()},
        {item: tuple(answer.prompt for answer in found) for item, found in of_item.items()},
    )


def same_items(found: Iterable[Outcomes]) -> bool:
    """Return whether evaluations asked the same items: ids and prompts agree."""
    first, *others = found
    return all(other.items == first.items for other in others)


def graded_in_all(found: Iterable[Outcomes]) -> list[str]:
    """Return the items that every one of these evaluations could grade, in the first's order."""
    first, *others = found
    return [item for item in first.marks if all(item in other.marks for other in others)]


def _mark(marks: Mapping[str, Any], score_name: str) -> Any:
    names = (name for name in marks if f"_{score_name}".endswith(f"_{name}"))
    value = marks.get(next(names, next(iter(marks), "")))
    return all(value) if isinstance(value, list) else value


def _item_id(answer_id: str) -> str:
    is_turn = answer_id.startswith("MT-Bench/")
    return answer_id.rpartition("/")[0] if is_turn else answer_id
