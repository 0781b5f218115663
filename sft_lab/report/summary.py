"""The first screen of a report: what was found, in five sentences at most."""

from collections import Counter
from collections.abc import Sequence

from sft_lab.analysis.verdicts import VERDICTS
from sft_lab.report.page import Claim, Finding

_MOST = 5
_DECIDED = ("supported", "not supported")


def summary_sentences(claims: Sequence[Claim]) -> list[str]:
    """Return what a report found, in five sentences at most.

    Each but the last is about one claim that is decided for some ability, and names for each such
    ability the difference, its control, seeds and items; the questions take turns. The last counts
    the verdicts on all other findings.
    """
    decided = [claim for claim in claims if _decided(claim)]
    by_question: dict[str, list[Claim]] = {}
    for claim in decided:
        by_question.setdefault(claim.question, []).append(claim)
    turns = [
        claims[turn]
        for turn in range(max(map(len, by_question.values()), default=0))
        for claims in by_question.values()
        if turn < len(claims)
    ]
    chosen = turns[: _MOST - 1]
    sentences = [_sentence(claim) for claim in decided if claim in chosen]
    stated = {id(finding) for claim in chosen for finding in _decided(claim)}
    rest = [f for claim in claims for f in claim.findings if id(f) not in stated]
    counts = Counter(finding.verdict for finding in rest)
    if rest:
        listed = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
        other = "other findings" if stated else "findings"
        sentences.append(f"Of the {len(rest)} {other}: {listed}.")
    return sentences


def _decided(claim: Claim) -> list[Finding]:
    return [f for f in claim.findings if f.verdict in _DECIDED and f.evidence is not None]


def _sentence(claim: Claim) -> str:
    parts = []
    for word in _DECIDED:
        # Of several arms the first; the others are under the question.
        found = {f.ability: f for f in reversed(_decided(claim)) if f.verdict == word}
        if found:
            parts.append(f"{word} for {'; '.join(map(_evidence, reversed(found.values())))}")
    return f"{claim.text} ({claim.question}): {'; '.join(parts)}."


def _evidence(finding: Finding) -> str:
    evidence = finding.evidence
    assert evidence is not None
    return f"{finding.ability} ({evidence.change}, {evidence.control}, {evidence.basis})"
