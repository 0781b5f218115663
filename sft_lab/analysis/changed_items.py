"""Which items a run forgot on the way to its end, and which it got back, with the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sft_lab.analysis.outcomes import Outcomes
from sft_lab.runs.results import RunResult


@dataclass(frozen=True)
class ChangedItem:
    """An item that was right and then wrong.

    Attributes:
        id: The item.
        kind: ``forgotten``: right at an earlier boundary, wrong at the end. ``regained``: right,
            then wrong, and right at the end.
        prompt: What was asked.
        before_step: Optimizer steps at the last boundary where it was right, or, of a regained
            item, wrong.
        before: The answer there.
        after: The answer at the end.
    """

    id: str
    kind: Literal["forgotten", "regained"]
    prompt: str
    before_step: int
    before: str
    after: str


def changed_items(
    result: RunResult, benchmark: str, outcomes: Mapping[int, Outcomes | None]
) -> tuple[ChangedItem, ...]:
    """Return a run's forgotten and regained items of a benchmark, forgotten ones first.

    An item is right with a mark of 1 and wrong with 0; shares of samples are neither, and a
    benchmark of ratings has no such items.

    Args:
        result: The run.
        benchmark: The benchmark.
        outcomes: The benchmark's items at every stage boundary, by step.
    """
    if result.last is None or not result.benchmarks[benchmark].is_share:
        return ()
    found = [(step, of_step) for step in sorted(outcomes) if (of_step := outcomes[step])]
    changed = [_changed(item, found) for item in found[-1][1].marks] if found else []
    return tuple(sorted((c for c in changed if c is not None), key=lambda c: c.kind))


def _changed(item: str, found: Sequence[tuple[int, Outcomes]]) -> ChangedItem | None:
    marks = [of_step.marks.get(item) for _, of_step in found]
    end = marks[-1]
    if end not in (0, 1) or 1 not in marks[:-1]:
        return None
    was_right = marks.index(1)
    # Forgotten: where it was last right. Regained: where, after that, it was last wrong.
    others = [n for n in range(was_right, len(marks) - 1) if marks[n] == 1 - end]
    if not others:
        return None
    step, before = found[others[-1]]
    after = found[-1][1]
    return ChangedItem(
        item,
        "regained" if end == 1 else "forgotten",
        after.prompts[item][0],
        step,
        before.answers[item][0],
        after.answers[item][0],
    )
