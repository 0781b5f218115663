"""The number of items that an evaluation may use, given a share of a run's time."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

from sft_lab.errors import RequestError

MIN_ITEMS = 16  # per benchmark; fewer are uninformative


def budget_share(budget: float | str | None) -> float | None:
    """Return a budget as a share of a run's time.

    Raises:
        RequestError: If it is neither a share in (0, 1) nor a percentage.

    >>> budget_share("10%")
    0.1
    """
    if budget is None:
        return None
    try:
        text = str(budget)
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise RequestError(
            f"evaluation.budget must be a share of a run's time between 0 and 1, such as 10%, "
            f"got {budget!r}. Leave it out to measure all items every time."
        )
    return share


def guarded_evaluations(
    sizes: Mapping[str, int], selection: Mapping[str, int], num_guarded: int
) -> float:
    """Return the size of the selection items that a guard measures, in full evaluations.

    Args:
        sizes: All items, by benchmark.
        selection: Selection items, by benchmark that the guard reads.
        num_guarded: Evaluations between boundaries inside the guarded stage.

    >>> guarded_evaluations({"math": 200, "code": 200}, {"math": 100}, num_guarded=6)
    1.5
    """
    return num_guarded * sum(selection.values()) / max(sum(sizes.values()), 1)


@dataclass(frozen=True)
class Pace:
    """The speed of a run, known when the first evaluation between boundaries is due.

    Attributes:
        evaluation_s: Seconds that a full evaluation takes.
        step_s: Seconds that an optimizer step takes.
        num_steps: Optimizer steps of the whole run.
        num_full: Evaluations on all items: before the first step, and at stage boundaries.
        num_between: All other evaluations.
        report_share: Part of a full evaluation's items that the budget may leave out: the reported
            ones.
        guarded: Items that the others measure in any case, all together, in full evaluations: the
            selection items of a guard.
    """

    evaluation_s: float
    step_s: float
    num_steps: int
    num_full: int
    num_between: int
    report_share: float = 1.0
    guarded: float = 0.0


def items_between(num_items: Mapping[str, int], budget: float, pace: Pace) -> dict[str, int]:
    """Return how many items of each benchmark an evaluation between boundaries may use.

    Full evaluations and the selection items of a guard come first; the others share the rest of the
    budget and use the same fraction of every benchmark, but at least 16 items: if what comes first
    alone needs more than the budget, it is exceeded.

    Args:
        num_items: Reported items, by benchmark.
        budget: Share of the run's time that evaluations may take, in (0, 1).
        pace: The speed of the run.

    >>> pace = Pace(evaluation_s=60, step_s=1, num_steps=1900, num_full=2, num_between=4)
    >>> items_between({"math": 300}, 0.1, pace)  # 1900 / 9 s in all, 211 - 120 for four: 23 s each
    {'math': 113}
    """
    allowed_s = budget / (1 - budget) * pace.step_s * pace.num_steps
    left_s = allowed_s - (pace.num_full + pace.guarded) * pace.evaluation_s
    one_s = pace.evaluation_s * pace.report_share
    share = left_s / (max(pace.num_between, 1) * max(one_s, 1e-9))
    return {
        name: min(count, max(MIN_ITEMS, floor(count * share))) for name, count in num_items.items()
    }
