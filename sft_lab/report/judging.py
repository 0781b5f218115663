"""Judges claims by comparisons, each with a careful sentence.

The verdict is that of ``analysis.verdicts``. A difference that is not shown is never called
equality: the sentence says which differences the data still allow, and which they could have shown.
"""

from collections.abc import Collection, Mapping, Sequence
from math import isfinite

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.controls import PHRASES
from sft_lab.analysis.measurements import Comparison, Measurements
from sft_lab.analysis.verdicts import Direction, verdict
from sft_lab.report.page import Evidence, Finding

_ONE_SEED = "one seed only, of items alone"  # less strict than a test over several seeds
_CLAIMED: Mapping[Direction, str] = {
    "higher": "higher",
    "lower": "lower",
    "same": "no effect",
    "not_lower": "no loss",
}


def judge(
    ability: Ability,
    direction: Direction,
    comparisons: Sequence[Comparison],
    measured: Measurements,
    lead: str = "",
    *,
    paper: str = "",
    controls: Mapping[str, Sequence[Comparison]] | None = None,
    needs: Collection[str] = (),
) -> Finding:
    """Judge a claim about one ability, with the sentence that carries its figures.

    Args:
        ability: The ability.
        direction: What the claim says of the second side.
        comparisons: What it is judged by; several are levels that are each compared.
        measured: Makes the tests of no loss.
        lead: Beginning of the sentence, such as ``math alone, from 1/256 to 1``.
        paper: The paper's figures.
        controls: Comparisons with control arms in place of the first side, by control.
        needs: Controls of which the claim needs one.
    """
    found = dict(controls or {})
    if direction == "not_lower":
        comparisons = [measured.no_loss(c) for c in comparisons]
        found = {name: [measured.no_loss(c) for c in some] for name, some in found.items()}
    word = verdict(direction, comparisons, found, needs)
    if len(comparisons) == 1:
        sentence = _one(comparisons[0], direction, lead)
    else:
        sentence = _levels(comparisons, lead)
    sentences = [sentence]
    for name, some in found.items():
        sentences += [f"Control {name}: {_one(c, direction)}" for c in some]
    if word == "not controlled":
        sentences.append(f"The claim needs a control ({' or '.join(needs)}).")
    elif word == "not tested" and any(c.difference is not None for c in comparisons):
        sentences.append("Neither side was shown above guessing and apart from the base.")
    claimed = f"{_CLAIMED[direction]}{f'; {paper}' if paper else ''}"
    evidence = _evidence_of(comparisons, found, needs)
    return Finding(ability.name, word, " ".join(sentences), claimed, evidence)


def not_tested(ability: Ability, sentence: str, paper: str = "") -> Finding:
    """Return the finding on an ability of which nothing could be compared."""
    return Finding(ability.name, "not tested", sentence, paper)


def _one(comparison: Comparison, direction: Direction, lead: str = "") -> str:
    lead = lead or f"From {comparison.before} to {comparison.after}"
    if comparison.difference is None:
        return f"{lead}: not compared, because {comparison.why_not}."
    text = f"{lead}: {describe(comparison)}"
    if direction != "not_lower":
        return text
    ruled_out = "is ruled out" if comparison.p_no_loss < 0.05 else "is not ruled out"
    least = _size(comparison.ability, comparison.margin)
    return f"{text[:-1]}; a loss of {least} or more {ruled_out}."


def _levels(comparisons: Sequence[Comparison], lead: str) -> str:
    """Return the sentence on an ability over several levels, each against the same reference."""
    tested = [c for c in comparisons if c.difference is not None]
    if not tested:
        return f"{lead}: not compared, because {comparisons[0].why_not}."
    ability, margin = tested[0].ability, tested[0].margin
    widest = max(tested, key=lambda c: abs(c.difference.value) if c.difference else 0.0)
    within = [c for c in tested if c.is_equivalent]
    shown = [c for c in tested if c.shown]
    differences = [c.difference for c in tested if c.difference is not None]
    bound = max(max(abs(difference.low), abs(difference.high)) for difference in differences)
    seeds = f"; {_ONE_SEED}" if any(1 in c.seeds for c in tested) else ""
    extent = f"the largest difference is {change_text(widest)} ({widest.span}{seeds})"
    least = _size(ability, margin)
    few = ""
    if len(tested) < len(comparisons):
        few = f"only {len(tested)} of {len(comparisons)} levels could be compared; "
    if len(within) == len(tested):
        return f"{lead}: {few}a difference of {least} or more is ruled out at each; {extent}."
    count = f"{len(shown)} of {len(tested)} levels {'differs' if len(shown) == 1 else 'differ'}"
    some = f"{count} by more than chance" if shown else "no difference is shown"
    allowed = (
        f"differences of up to {_size(ability, bound)} are compatible with the data"
        if isfinite(bound)
        else "there are too few items to bound it"
    )
    return f"{lead}: {few}{some}; {extent}, and {allowed}{_could_show(tested)}."


def describe(comparison: Comparison) -> str:
    """Return the difference in words, ending in a full stop."""
    difference, ability = comparison.difference, comparison.ability
    assert difference is not None
    figures = f"{change_text(comparison)}; {_evidence(comparison)}"
    least = _size(ability, comparison.margin)
    if comparison.shown:
        by_little = f", by less than {least}" if comparison.is_equivalent else ""
        return f"{'higher' if difference.value > 0 else 'lower'}{by_little} ({figures})."
    if comparison.is_equivalent:
        return f"a difference of {least} or more is ruled out ({figures})."
    compatible = _compatible(ability, difference.low, difference.high)
    return f"no difference is shown ({figures}); {compatible}{_could_show([comparison])}."


def _could_show(comparisons: Sequence[Comparison]) -> str:
    smallest = max(c.smallest for c in comparisons)
    if not isfinite(smallest):
        return ""
    ability = comparisons[0].ability
    low, high = ability.scale
    least = f"a difference of {_size(ability, smallest)}"
    if smallest > high - low:
        least = "no difference that the scale allows"
    return f"; {least} would be shown in 80 % of cases"


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
    if not (isfinite(low) and isfinite(high)):
        return "too few items for an interval"
    return f"{ability.change(low)} to {ability.change(high)}"


def basis(comparison: Comparison) -> str:
    """Return the seeds and items of a comparison, such as ``3 seeds, 200 items``."""
    assert comparison.difference is not None
    least, most = min(comparison.seeds), max(comparison.seeds)
    if least == 1:
        seeds = _ONE_SEED
    else:
        seeds = f"{least} seeds" if least == most else f"{least} and {most} seeds"
    items = f"{comparison.difference.n} items"
    if comparison.clusters < comparison.difference.n:
        items += f" in {comparison.clusters} clusters"
    return f"{seeds}, {items}"


def margin_text(margin: float) -> str:
    """Return the sentence that defines the margin, a part of the scale."""
    return (
        f"No effect is shown by two one-sided tests against a margin of {100 * margin:g} % of the "
        f"scale ({100 * margin:g} points of 100, or {9 * margin:.2g} of 1 to 10), never by a "
        "difference that is not shown. A difference is shown if its p, corrected over all tests "
        "of this report, is below 5 %."
    )


def _evidence_of(
    comparisons: Sequence[Comparison],
    controls: Mapping[str, Sequence[Comparison]],
    needs: Collection[str],
) -> Evidence | None:
    """Return the figures of the comparison that a summary names: the control's, if there is one."""
    controlled = [
        (name, c) for name, some in controls.items() for c in some if c.difference is not None
    ]
    tested = [c for c in comparisons if c.difference is not None]
    if not tested:
        return None
    widest = max(tested, key=lambda c: abs(c.difference.value) if c.difference else 0.0)
    control = "no control needed" if not needs else "without a control"
    rest = ""
    if controlled:
        name, against = controlled[0]
        rest, control = change_text(against), f"control {PHRASES[name]}"
    assert widest.difference is not None
    return Evidence(change_text(widest), rest, control, widest.seeds, widest.difference.n)


def _evidence(comparison: Comparison) -> str:
    difference = comparison.difference
    assert difference is not None
    interval = interval_text(comparison.ability, difference.low, difference.high)
    text = f"95 % interval {interval}, {p_text(comparison.p_holm)} after Holm"
    return f"{text}; {basis(comparison)}"


def _compatible(ability: Ability, low: float, high: float) -> str:
    if not (isfinite(low) and isfinite(high)):
        return "there are too few items to bound it"
    loss, gain = _size(ability, max(-low, 0.0)), _size(ability, max(high, 0.0))
    chance = "corrected for many comparisons this may be chance"
    if low >= 0:
        return f"{chance}, and a gain of up to {gain} is compatible with the data"
    if high <= 0:
        return f"{chance}, and a loss of up to {loss} is compatible with the data"
    return f"a loss of up to {loss} and a gain of up to {gain} are compatible with the data"


def change_text(comparison: Comparison) -> str:
    """Return the difference of a comparison with its unit."""
    assert comparison.difference is not None
    ability = comparison.ability
    unit = "points" if ability.is_share else f"on its scale of {ability.unit}"
    return f"{ability.change(comparison.difference.value)} {unit}"


def _size(ability: Ability, value: float) -> str:
    return f"{ability.text(value)}{' points' if ability.is_share else ''}"
