"""The first screen of a report: a sentence that answers each question, and all verdicts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sft_lab.analysis.abilities import Ability, taught
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Comparison, Measurements, end_of
from sft_lab.analysis.study_results import Question, SearchResult
from sft_lab.analysis.verdicts import VERDICTS, Verdict
from sft_lab.report.judging import change_text
from sft_lab.report.page import VERDICT_SIGNS, Claim, Finding, Judged, Verdicts
from sft_lab.terminal import counted

_DECIDED: Sequence[Verdict] = ("supported", "not supported")
_OTHERS: Sequence[Verdict] = ("inconclusive", "one seed only", "not controlled", "not tested")


def claims_answer(claims: Sequence[Claim]) -> str:
    """Return the sentence on a question's first claim that is decided for some ability.

    It names for each ability the difference and what is left of it against the control, then seeds
    and items. What else is decided follows likewise, for the abilities that decide it. Without a
    decided claim it is the first of which anything was compared.
    """
    compared = [claim for claim in claims if any(f.evidence for f in claim.findings)]
    decided = [c for c in compared if any(f.verdict in _DECIDED for f in c.findings)]
    if compared:
        first, *others = decided or compared
        words = (*_DECIDED, *_OTHERS)
        more = [_sentence(claim, _DECIDED) for claim in others] if decided else []
        return " ".join([_sentence(first, words), *more])
    if not claims:
        return "No claim of the paper is about it."
    return f"{claims[0].text}: not tested."


def strategies_answer(
    rows: Sequence[RunGroup], against: Sequence[Comparison], best: Mapping[Ability, RunGroup]
) -> str:
    """Return which strategy comes closest to the specialists in its worst ability.

    Args:
        rows: The rows of the strategies' table.
        against: Each row against the specialist of each ability.
        best: The specialists. Empty is returned without any, and without a strategy beside them.
    """
    specialists = {group.label for group in best.values()}
    strategies = [g.label for g in rows if g.label not in specialists and not g.control and g.runs]
    found: dict[str, list[Comparison]] = {}
    for c in against:
        if c.after in strategies and c.difference is not None:
            found.setdefault(c.after, []).append(c)
    found = {label: some for label, some in found.items() if len(some) == len(best)}
    if not found:
        return ""
    ranked = sorted(found, key=lambda label: min(map(_part, found[label])), reverse=True)
    losses = {label: [c.ability.name for c in found[label] if _is_loss(c)] for label in ranked}
    losing = [f"{label} ({', '.join(names)})" for label, names in losses.items() if names]
    several = counted(len(ranked), "strategy", "strategies")
    if not losing:
        lead = f"None of {several} is shown to lose an ability against its specialist"
    else:
        lead = (
            f"{len(losing)} of {several} {'is' if len(losing) == 1 else 'are'} shown to lose an "
            f"ability against its specialist: {', '.join(losing)}"
        )
    text = f"{lead}. In its worst ability {_with_worst(ranked[0], found)} is closest"
    if len(ranked) > 1:
        text += f", {_with_worst(ranked[-1], found)} furthest"
    every = [c for some in found.values() for c in some]
    return f"{text} ({_basis(every)}, each for its own number of steps)."


def _with_worst(label: str, found: Mapping[str, Sequence[Comparison]]) -> str:
    """Return a strategy with the ability in which it is furthest below the specialist."""
    worst = min(found[label], key=_part)
    shown = "" if worst.shown else ", not shown"
    return f"{label} ({worst.ability.name} {change_text(worst)}{shown})"


def search_answer(question: Question, searches: Sequence[SearchResult]) -> str:
    """Return the smallest value that a question's first search found; empty without a search."""
    found = next((search for search in searches if search.question == question.name), None)
    if found is None:
        return ""
    limits = " and ".join(f"{100 * limit:g} % of {key}" for key, limit in found.retention.items())
    basis = f"{counted(found.trials, 'run')} of {found.grid}, {counted(found.seeds, 'seed')}"
    if found.value is None:
        return f"No {found.axis} is shown to keep {limits} ({basis})."
    return f"{found.axis} = {found.value} is the smallest shown to keep {limits} ({basis})."


def extremes(
    place: str, groups: Sequence[RunGroup], abilities: Sequence[Ability], measured: Measurements
) -> list[Comparison]:
    """Compare of each ability the lowest arm with the highest.

    Both are chosen by their scores: p is multiplied by the number of pairs (Bonferroni).
    """
    found = []
    for ability in taught(abilities):
        means = [(measured.mean(ability, end_of(group)), group) for group in groups]
        known = [(mean.value, group) for mean, group in means if mean is not None]
        if len(known) < 2:
            continue
        (_, lowest), *_, (_, highest) = sorted(known, key=lambda scored: scored[0])
        pairs = len(known) * (len(known) - 1) // 2
        sides = end_of(lowest), end_of(highest)
        found.append(measured.compare(place, ability, *sides, chosen_from=pairs))
    return found


def extremes_answer(comparisons: Sequence[Comparison]) -> str:
    """Return the highest and the lowest arm of each ability in a sentence."""
    tested = [c for c in comparisons if c.difference is not None]
    if not tested:
        return "Nothing could be compared."
    parts = [
        f"{c.ability.name} from {c.before} to {c.after} {change_text(c)}"
        f"{'' if c.shown else ', which may be chance'}"
        for c in tested
    ]
    return f"Lowest to highest: {'; '.join(parts)} ({_basis(tested)})."


def verdicts(claims: Sequence[Claim]) -> Verdicts:
    """Return the verdicts on all findings, by ability and question."""
    found: dict[str, dict[str, list[Judged]]] = {}
    questions = list(dict.fromkeys(claim.question for claim in claims if claim.findings))
    for claim in claims:
        for finding in claim.findings:
            row = found.setdefault(finding.ability, {name: [] for name in questions})
            judged = Judged(finding.verdict, claim.text, claim.anchor)
            row[claim.question].append(judged)
    return found


def counts(claims: Sequence[Claim]) -> str:
    """Return how many findings have which verdict, with the signs of the strip."""
    found = Counter(finding.verdict for claim in claims for finding in claim.findings)
    listed = ", ".join(f"{VERDICT_SIGNS[v]} {found[v]} {v}" for v in VERDICTS if found[v])
    return f"{counted(found.total(), 'finding')} on the paper's claims: {listed}." if found else ""


def _sentence(claim: Claim, verdicts: Sequence[Verdict]) -> str:
    """Return a claim with the evidence on the abilities of some verdicts."""
    parts, stated = [], []
    for word in verdicts:
        # Of several arms the first; the others are under the question.
        found = {f.ability: f for f in reversed(claim.findings) if f.verdict == word and f.evidence}
        named = list(reversed(found.values()))
        if named:
            parts.append(f"{word} for {', '.join(map(_evidence, named))}")
            stated += named
    known = [f.evidence for f in stated if f.evidence]
    extent = _extent([n for e in known for n in e.seeds], [e.items for e in known])
    controls = ", ".join(dict.fromkeys(e.control for e in known))
    return f"{claim.text}: {'; '.join(parts)} ({extent}, {controls})."


def _evidence(finding: Finding) -> str:
    found = finding.evidence
    assert found is not None
    control = f", against the control {found.controlled}" if found.controlled else ""
    return f"{finding.ability} ({found.change}{control})"


def _basis(comparisons: Sequence[Comparison]) -> str:
    seeds = [n for c in comparisons for n in c.seeds]
    return _extent(seeds, [c.difference.n for c in comparisons if c.difference])


def _extent(seeds: Iterable[int], items: Iterable[int]) -> str:
    return f"{_range(seeds, 'seed')}, {_range(items, 'item')}"


def _range(numbers: Iterable[int], noun: str) -> str:
    found = sorted(set(numbers))
    if len(found) == 1:
        return counted(found[0], noun)
    return f"{found[0]} to {counted(found[-1], noun)}"


def _part(comparison: Comparison) -> float:
    """Return a difference as a part of its scale."""
    assert comparison.difference is not None
    low, high = comparison.ability.scale
    return comparison.difference.value / (high - low)


def _is_loss(comparison: Comparison) -> bool:
    return comparison.shown and _part(comparison) < 0
