"""Replanning the rest of a stage while it is trained, as a function of the plan so far."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

from sft_lab.training.order import RowCounts, RowRef, seeded, shuffled, spread
from sft_lab.training.plan import StagePlan, Window, into_bins


@dataclass(frozen=True)
class PlanChange:
    """New shares of some sources of a stage, from a step on.

    Attributes:
        stage: The stage.
        step: Optimizer steps of the run after which it takes effect.
        shares: The new shares by source.
        steered: All sources of the stage whose share may change; the others measure how much of
            the stage is left.
    """

    stage: str
    step: int
    shares: dict[str, Any]
    steered: list[str]


PLAN_CHANGES = "plan_changes"
"""Key of a callback's state under which it keeps its plan changes, as plain values."""


def saved_plan_changes(states: Mapping[str, Mapping[str, Any]]) -> list[PlanChange]:
    """Return the plan changes that the callbacks of a checkpoint made, in order.

    Args:
        states: States of callbacks by name, ``checkpoint["callbacks"]``.
    """
    saved = chain.from_iterable(state.get(PLAN_CHANGES, ()) for state in states.values())
    return sorted((PlanChange(**change) for change in saved), key=lambda change: change.step)


def replan(
    plan: StagePlan,
    step: int,
    replay: Mapping[str, Sequence[int]],
    *,
    steered: Sequence[str],
    num_tokens: RowCounts,
    batch_size: int,
    seed: int,
    packed_length: int | None = None,
) -> StagePlan:
    """Give the rest of a stage new shares of some of its sources.

    The remaining rows of all other sources stay, in their order within each pass, so that none is
    lost or repeated. The remaining rows of a source with a new share are replaced: a share of n
    rows per pass contributes ``ceil(n * left / whole)`` of them to the rest of each pass, where
    left and whole count rows of the sources that are not steered. Rows that the pass has not used
    yet come first, and are repeated only if they are too few. All are spread evenly over the rest.

    Args:
        plan: The stage as planned so far.
        step: Optimizer steps of the stage that stay as they are.
        replay: By source with a new share, the row indices that it gives for a whole pass, in rank
            order.
        steered: All sources whose share may change; the others measure how much is left.
        num_tokens: Tokens of every row, by source.
        batch_size: Training sequences per optimizer step.
        seed: Seed of the order.
        packed_length: As in ``plan_stage``.
    """
    passes: list[list[Window]] = []
    start = 0
    for index, windows in enumerate(plan.passes):
        kept = windows[: max(0, step - start)]
        start += len(windows)
        rest = windows[len(kept) :]
        if not rest:
            passes.append(windows)
            continue
        left = _rows(rest)
        whole, still = (_count_others(rows, steered) for rows in (_rows(windows), left))
        parts = (seed, plan.name, index, step)
        had = _rows(kept)
        for source, rows in replay.items():
            due = _least_seen(rows, had.get(source, []))
            due = due[: math.ceil(Fraction(len(rows) * still, whole))]
            left[source] = shuffled(due, seeded(*parts, source, "rows"))
        bins = into_bins(_interleaved(left, *parts), num_tokens, packed_length)
        new = [bins[first : first + batch_size] for first in range(0, len(bins), batch_size)]
        passes.append([*kept, *new])
    num_steps = sum(len(windows) for windows in passes)
    lengths = plan.lengths or ((0, plan.num_steps),)
    return StagePlan(plan.name, passes, (*lengths, (step, num_steps)))


def _least_seen(rows: Sequence[int], had: Sequence[int]) -> list[int]:
    """Sort rows by how often this pass has used them; ties keep their order.

    >>> _least_seen([0, 1, 2, 3], had=[0, 2, 2])
    [1, 3, 0, 2]
    """
    times = Counter(had)
    repeats = []
    for row in rows:  # a share above 1 has a row several times
        repeats.append(max(times[row], 0))
        times[row] -= 1
    return [row for _, row in sorted(zip(repeats, rows, strict=True), key=lambda pair: pair[0])]


def _rows(windows: Sequence[Window]) -> dict[str, list[int]]:
    """Return row indices by source, in their order."""
    rows: dict[str, list[int]] = {}
    for ref in chain.from_iterable(chain.from_iterable(windows)):
        rows.setdefault(ref.source, []).append(ref.index)
    return rows


def _count_others(rows: Mapping[str, Sequence[int]], steered: Sequence[str]) -> int:
    return sum(len(indices) for source, indices in rows.items() if source not in steered)


def _interleaved(rows: Mapping[str, Sequence[int]], *parts: object) -> list[RowRef]:
    """Spread every source evenly, as ``EvenOrder`` does, and keep the order of its rows."""
    placed: list[tuple[float, RowRef]] = []
    for source, indices in rows.items():
        placed += spread(source, indices, seeded(*parts, source))
    return [ref for _, ref in sorted(placed)]


def split_passes(passes: Sequence[list[Window]], cuts: range) -> list[list[Window]]:
    """Split passes into parts that end with a pass or after given optimizer steps.

    >>> split_passes([["a", "b", "c"], ["d"]], range(2, 4, 1))
    [['a', 'b'], ['c'], ['d']]

    Args:
        passes: Windows by pass.
        cuts: Optimizer steps of the stage after which a part ends.
    """
    parts: list[list[Window]] = []
    step = 0
    for windows in passes:
        start = 0
        for index in range(1, len(windows) + 1):
            step += 1
            if step in cuts or index == len(windows):
                parts.append(windows[start:index])
                start = index
    return parts
