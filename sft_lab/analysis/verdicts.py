"""Verdicts on claims: one definition for reports and every published sentence."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

from sft_lab.analysis.family import LEVEL
from sft_lab.analysis.measurements import Comparison

Outcome = Literal["supported", "not supported", "inconclusive"]
Verdict = Literal["not tested", "not controlled", "one seed only"] | Outcome
VERDICTS: tuple[Verdict, ...] = (
    "supported",
    "not supported",
    "inconclusive",
    "one seed only",
    "not controlled",
    "not tested",
)
"""All verdicts, in the order of columns."""

Direction = Literal["higher", "lower", "same", "not_lower"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


def verdict(
    direction: Direction,
    comparisons: Sequence[Comparison],
    controls: Mapping[str, Sequence[Comparison]] | None = None,
    needs: Collection[str] = (),
) -> Verdict:
    """Return the verdict on a claim about one ability: the first that applies.

    ``not tested``: nothing could be compared, or the ability was never learned or stayed at the
    score of guessing. ``not controlled``: the claim needs a control that the study does not have.
    ``one seed only``: a side has a single seed, so that nothing is known about others. Otherwise
    the claim is ``supported`` if every comparison supports it, those with controls among them,
    ``not supported`` if one contradicts it, and ``inconclusive`` in between.

    Args:
        direction: What the claim says of the second side.
        comparisons: What it is judged by: one, or every level that it speaks of.
        controls: Comparisons with control arms in place of the first side, by control.
        needs: Controls of which the claim needs one; none by default.
    """
    tested = [c for c in comparisons if c.difference is not None]
    if not any(c.is_learned for c in tested):
        return "not tested"
    controlled = {
        name: [c for c in found if c.difference is not None]
        for name, found in (controls or {}).items()
    }
    if needs and not any(controlled.get(name) for name in needs):
        return "not controlled"
    every = [*tested, *(c for found in controlled.values() for c in found)]
    if min(min(c.seeds) for c in every) < 2:
        return "one seed only"
    outcomes = {outcome(direction, c) for c in every}
    if "not supported" in outcomes:
        return "not supported"
    return (
        "supported"
        if outcomes == {"supported"} and len(tested) == len(comparisons)
        else ("inconclusive")
    )


def outcome(direction: Direction, comparison: Comparison) -> Outcome:
    """Return what one comparison says of a claim, by tests that are corrected for their number.

    That an ability is ``same`` needs a test of equivalence within the margin, that it is
    ``not_lower`` one of no loss of the margin or more. A claimed rise or fall is not supported
    if the contrary is shown, or if any change is smaller than the margin.
    """
    if comparison.difference is None:
        return "inconclusive"
    value = comparison.difference.value
    if direction in ("higher", "lower"):
        if comparison.shown:
            return "supported" if (value > 0) == (direction == "higher") else "not supported"
        return "not supported" if comparison.is_equivalent else "inconclusive"
    holds = comparison.is_equivalent if direction == "same" else comparison.p_no_loss < LEVEL
    if holds:
        return "supported"
    size = abs(value) if direction == "same" else -value
    return "not supported" if comparison.shown and size >= comparison.margin else "inconclusive"
