"""Judges claims by comparisons, each with a careful sentence.

A difference that is not shown is never called equality: the sentence says which differences the
data still allow. A change smaller than ``abilities.SMALL`` is called small, by convention.
"""

from collections.abc import Sequence

from sft_lab.analysis.abilities import SMALL, Ability
from sft_lab.analysis.measurements import Comparison
from sft_lab.report.page import Finding, Judgement

_ONE_SEED = "one seed only, of items alone"  # less strict than a test over several seeds


def judge_direction(comparison: Comparison, sign: int, lead: str = "") -> Finding:
    """Judge the claim that an ability rises (sign 1) or falls (sign -1) between two sides.

    It is supported if that is shown, and not supported if the contrary is, or if any change is
    small.

    Args:
        comparison: The two sides.
        sign: The claimed direction.
        lead: Beginning of the sentence, such as ``math alone, from 1/256 to 1``.
    """
    difference, ability = comparison.difference, comparison.ability
    if difference is None:
        return _inconclusive(comparison, lead)
    if comparison.shown:
        judgement: Judgement = "supported" if difference.value * sign > 0 else "not supported"
    elif _within(comparison):
        judgement = "not supported"
    else:
        judgement = "inconclusive"
    return Finding(ability.name, judgement, f"{_lead(comparison, lead)} {describe(comparison)}")


def judge_no_loss(comparison: Comparison, lead: str = "") -> Finding:
    """Judge the claim that an ability loses nothing, or only a small part."""
    difference, ability = comparison.difference, comparison.ability
    if difference is None:
        return _inconclusive(comparison, lead)
    if difference.low > -ability.small:
        judgement: Judgement = "supported"
        bound_text = f"a loss of {_size(ability, ability.small)} or more is ruled out."
    elif comparison.shown and difference.value <= -ability.small:
        judgement = "not supported"
        bound_text = ""
    else:
        judgement = "inconclusive"
        bound_text = f"a loss of {_size(ability, ability.small)} or more is not ruled out."
    text = f"{_lead(comparison, lead)} {describe(comparison)}"
    return Finding(ability.name, judgement, f"{text[:-1]}; {bound_text}" if bound_text else text)


def judge_no_effect(comparisons: Sequence[Comparison], planned: int, lead: str) -> Finding:
    """Judge the claim that an ability does not depend on something, over several levels of it.

    It is supported only if all levels were compared and every interval lies within a small change.

    Args:
        comparisons: Each level against the same reference, of one ability; at least one.
        planned: Levels of the study besides the reference.
        lead: Beginning of the sentence.
    """
    tested = [c for c in comparisons if c.difference is not None]
    if not tested:
        return _inconclusive(comparisons[0], lead)
    ability = tested[0].ability
    widest = max(tested, key=lambda c: abs(c.difference.value) if c.difference else 0.0)
    assert widest.difference is not None
    shown = [c for c in tested if c.shown]
    differences = [c.difference for c in tested if c.difference is not None]
    bound = max(max(abs(difference.low), abs(difference.high)) for difference in differences)
    count = f"{len(shown)} of {len(tested)} levels {'differs' if len(shown) == 1 else 'differ'}"
    seeds = f"; {_ONE_SEED}" if any(1 in c.seeds for c in tested) else ""
    extent = f"the largest difference is {_change(widest)} ({widest.span}{seeds})"
    within = f"stay within {_size(ability, ability.small)} either way"
    missing = f"only {len(tested)} of {planned} levels could be compared; "
    if bound < ability.small and len(tested) == planned:
        judgement: Judgement = "supported"
        sentence = f"the intervals of all {planned} levels {within}; {extent}."
    elif any(abs(c.difference.value) >= ability.small for c in shown if c.difference):
        judgement = "not supported"
        sentence = f"{count} from {tested[0].before} by more than chance; {extent}."
    elif bound < ability.small:
        judgement, sentence = "inconclusive", f"{missing}their intervals {within}; {extent}."
    else:
        judgement = "inconclusive"
        some = f"{count} by more than chance" if shown else "no difference is shown"
        few = missing if len(tested) < planned else ""
        allowed = (
            "there are too few items to bound it"
            if bound == float("inf")
            else f"differences of up to {_size(ability, bound)} are compatible with the data"
        )
        sentence = f"{few}{some}; {extent}, and {allowed}."
    return Finding(ability.name, judgement, f"{lead}: {sentence}")


def describe(comparison: Comparison) -> str:
    """Return the difference in words, ending in a full stop."""
    difference, ability = comparison.difference, comparison.ability
    assert difference is not None
    figures = f"{_change(comparison)}; {_evidence(comparison)}"
    if comparison.shown:
        by_little = f", by less than {_size(ability, ability.small)}" if _within(comparison) else ""
        return f"{'higher' if difference.value > 0 else 'lower'}{by_little} ({figures})."
    if _within(comparison):
        least = _size(ability, ability.small)
        return f"no difference is shown ({figures}); any change is smaller than {least}."
    low, high = difference.low, difference.high
    return f"no difference is shown ({figures}); {_compatible(ability, low, high)}."


def p_text(p: float) -> str:
    """Return a p value as text.

    >>> p_text(0.0004), p_text(0.0451), p_text(0.31)
    ('p < 0.001', 'p = 0.045', 'p = 0.31')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def interval_text(ability: Ability, low: float, high: float) -> str:
    """Return the interval of a difference as text; with too few items it has no ends."""
    if low == float("-inf") or high == float("inf"):
        return "too few items for an interval"
    return f"{ability.change(low)} to {ability.change(high)}"


def _evidence(comparison: Comparison) -> str:
    difference = comparison.difference
    assert difference is not None
    interval = interval_text(comparison.ability, difference.low, difference.high)
    text = f"95 % interval {interval}, {p_text(comparison.p_holm)} after Holm"
    return f"{text}; {_ONE_SEED}" if 1 in comparison.seeds else text


def _compatible(ability: Ability, low: float, high: float) -> str:
    if low == float("-inf") or high == float("inf"):
        return "there are too few items to bound it"
    loss, gain = _size(ability, max(-low, 0.0)), _size(ability, max(high, 0.0))
    chance = "corrected for many comparisons this may be chance"
    if low >= 0:
        return f"{chance}, and a gain of up to {gain} is compatible with the data"
    if high <= 0:
        return f"{chance}, and a loss of up to {loss} is compatible with the data"
    return f"a loss of up to {loss} and a gain of up to {gain} are compatible with the data"


def _within(comparison: Comparison) -> bool:
    difference, small = comparison.difference, comparison.ability.small
    return difference is not None and -small < difference.low and difference.high < small


def _change(comparison: Comparison) -> str:
    assert comparison.difference is not None
    ability = comparison.ability
    unit = "points" if ability.is_share else f"on its scale of {ability.unit}"
    return f"{ability.change(comparison.difference.value)} {unit}"


def _size(ability: Ability, value: float) -> str:
    return f"{ability.text(value)}{' points' if ability.is_share else ''}"


def _lead(comparison: Comparison, lead: str) -> str:
    return f"{lead or f'From {comparison.before} to {comparison.after}'}:"


def _inconclusive(comparison: Comparison, lead: str) -> Finding:
    return Finding(
        comparison.ability.name,
        "inconclusive",
        f"{_lead(comparison, lead)} not compared, because {comparison.why_not}.",
    )


def small_text() -> str:
    """Return the sentence that defines a small change."""
    return (
        f"A change is called small if its whole 95 % interval lies within {100 * SMALL:g} % of "
        "the scale (5 points of 100, or 0.45 of 1 to 10). That is a convention of this report, "
        "needed because a test that shows no difference does not show equality."
    )
