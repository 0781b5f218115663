"""RQ1 and RQ2: abilities by amount of data, one source alone and all sources mixed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.controls import OF_MIXING
from sft_lab.analysis.groups import RunGroup, amount, controls_of, series_of
from sft_lab.analysis.measurements import Comparison, Measurements, end_of
from sft_lab.analysis.study_results import Question, StudyResults
from sft_lab.report.judging import judge, not_tested
from sft_lab.report.page import Claim, Finding
from sft_lab.report.paper.claims import Expected, PaperClaim, paper_claims
from sft_lab.training.shares import parse_share

_PLATEAU_ROWS = 1000


def is_alone(arm: str, source: str | None) -> bool:
    """Return whether an arm is named ``<source>`` or ``<source>_only``: it trains that alone."""
    return source is not None and (arm == source or arm.startswith(f"{source}_only"))


def own_series(question: Question | None, ability: Ability) -> list[list[RunGroup]]:
    """Return the groups that train the source of an ability alone, from the least amount up.

    Groups that differ by a further axis are separate series. Empty without such groups.
    """
    series = series_of(question).values() if question else ()
    found = [groups for groups in series if is_alone(groups[0].arm, ability.source)]
    return [groups for groups in found if groups[0].arm == found[0][0].arm]


def single_question(results: StudyResults) -> Question | None:
    """Return the first question of single sources, or None."""
    return next((q for q in results.questions if q.design == "single"), None)


def single_claims(
    question: Question,
    results: StudyResults,
    abilities: Sequence[Ability],
    measured: Measurements,
) -> tuple[list[Claim], list[Comparison]]:
    """Judge whether abilities rise with their own data, and whether one reaches a plateau."""
    made: list[Comparison] = []

    def compare(ability: Ability, before: RunGroup, after: RunGroup) -> Comparison:
        found = measured.compare(question.name, ability, end_of(before), end_of(after))
        made.append(found)
        return found

    def controls(
        ability: Ability, before: RunGroup, after: RunGroup
    ) -> dict[str, list[Comparison]]:
        return {
            c.control: [compare(ability, c, after)]
            for c in controls_of(results, before)
            if c.control in OF_MIXING and not c.alone
        }

    def findings(claim: PaperClaim) -> list[Finding]:
        found = []
        for ability, expected in claim.expected(abilities):
            for groups in own_series(question, ability) or [[]]:
                groups = _with_runs(groups)
                if expected.direction == "same":
                    groups = [g for g in groups if _rows(g, ability) >= _PLATEAU_ROWS]
                if len(groups) < 2:
                    found.append(_too_few(ability, expected))
                    continue
                levels = [group.level for group in groups]
                whole = compare(ability, groups[0], groups[-1])
                steps = [compare(ability, a, b) for a, b in pairwise(groups)]
                finding = judge(
                    ability,
                    expected.direction,
                    [whole],
                    measured,
                    f"{groups[0].named('alone')}, from {levels[0]} to {levels[-1]}",
                    paper=expected.figures,
                    controls=controls(ability, groups[0], groups[-1]),
                )
                sentence = f"{finding.sentence} {_steps(levels, steps)}"
                found.append(replace(finding, sentence=sentence))
        return found

    claims = paper_claims()
    judged = [(claims[name], findings(claims[name])) for name in ("rises", "plateau")]
    return [claim.judged(question.name, found) for claim, found in judged], made


def mixed_claims(
    question: Question,
    results: StudyResults,
    abilities: Sequence[Ability],
    measured: Measurements,
) -> tuple[list[Claim], list[Comparison]]:
    """Judge mixing of the sources against each alone, at equal amounts and then equal steps."""
    single = single_question(results)
    arms = series_of(question)
    made: list[Comparison] = []

    def compare(ability: Ability, before: RunGroup, after: RunGroup) -> Comparison:
        found = measured.compare(question.name, ability, end_of(before), end_of(after))
        made.append(found)
        return found

    def finding(ability: Ability, expected: Expected, arm: str, few: bool) -> Finding:
        pairs = [
            (mixed, compare(ability, alone, mixed))
            for series in own_series(single, ability)
            for alone, mixed in _equal_amounts(series, arms[arm])
        ]
        if not pairs:
            return _too_few(ability, expected, f"{arm} against {ability.source} alone")
        if len(pairs) == 1:
            return _one_amount(ability, expected, arm, pairs[0][0].level)
        # Where nothing was learned, mixing can neither gain nor lose.
        last = len(pairs) - 1
        learned = [n for n, (_, c) in enumerate(pairs) if c.is_learned]
        first = learned[0] if learned else last
        at = first if few else last
        if few and first == last:
            where = f"below {pairs[-1][0].level}"
            return _nothing_learned(ability, expected, arm, where)
        mixed, comparison = pairs[at]
        lead = f"{arm} against alone, at {mixed.level} of each source"
        if few and first > 0:
            lead += ", the least amount at which either differs from the base"
        return judge(
            ability,
            expected.direction,
            [comparison],
            measured,
            lead,
            paper=expected.figures,
            controls=alone_controls(results, ability, mixed, compare),
            needs=OF_MIXING,
        )

    claims = []
    for name, few in (("gains", True), ("loses", False)):
        claim = paper_claims()[name]
        findings = [
            finding(ability, expected, arm, few)
            for arm in arms
            for ability, expected in claim.expected(abilities)
        ]
        claims.append(claim.judged(question.name, findings))
    return claims, made


def alone_controls(
    results: StudyResults,
    ability: Ability,
    mixed: RunGroup,
    compare: Callable[[Ability, RunGroup, RunGroup], Comparison],
) -> dict[str, list[Comparison]]:
    """Return a mixture against its ability's source alone, at equal steps or tokens."""
    return {
        control.control: [compare(ability, control, mixed)]
        for control in controls_of(results, mixed)
        if control.control in OF_MIXING and control.alone == ability.source
    }


def _equal_amounts(
    alone: Sequence[RunGroup], mixed: Sequence[RunGroup]
) -> list[tuple[RunGroup, RunGroup]]:
    """Return the groups of equal amounts, and equal further axes, of which both have runs."""
    return [
        (a, b)
        for b in _with_runs(mixed)
        for a in _with_runs(alone)
        if a.named("") == b.named("")
        and (a.level == b.level or amount(a.level) == amount(b.level) is not None)
    ]


def _with_runs(groups: Sequence[RunGroup]) -> list[RunGroup]:
    return [group for group in groups if group.runs]


def _steps(levels: Sequence[str], steps: Sequence[Comparison]) -> str:
    """Return which of the steps from level to level are shown, as a sentence."""
    named = list(zip(pairwise(levels), steps, strict=True))
    tested = [(a, b, c) for (a, b), c in named if c.difference is not None]
    missing = [(a, b, c) for (a, b), c in named if c.difference is None]
    if not tested:
        return "None of its steps up could be compared."
    falls = [(a, b, c) for a, b, c in tested if c.difference and c.difference.value < 0]
    rises = sum(c.shown for _, _, c in tested) - sum(c.shown for _, _, c in falls)
    some = f"{len(tested)} of its" if missing else "its"
    text = f"Of {some} {_steps_up(len(steps))}, {rises} {'is' if rises == 1 else 'are'} shown"

    def places(some: Sequence[tuple[str, str, Comparison]]) -> str:
        return ", ".join(f"from {a} to {b}" for a, b, _ in some)

    end = f" Not compared: {places(missing)}." if missing else ""
    shown = [fall for fall in falls if fall[2].shown]
    if shown:
        return f"{text} one by one; it is shown to fall {places(shown)}.{end}"
    if falls:
        return f"{text} one by one; the mean falls {places(falls)}, which may be chance.{end}"
    return f"{text} one by one, and the mean falls in none.{end}"


def _steps_up(number: int) -> str:
    return f"{number} steps up" if number > 1 else "one step up"


def _rows(group: RunGroup, ability: Ability) -> float:
    """Return how many rows of an ability's source a group trains; 0 where that is not recorded."""
    found = []
    for run in group.runs.values():
        source = run.record.sources.get(ability.source or "")
        for stage in run.record.stages.values():
            share = parse_share(stage.asked.get(ability.source or "", 0))
            if source is not None and share.kind in ("multiple", "rows"):
                whole = source.rows - source.held_out if share.kind == "multiple" else 1
                found.append(float(share.amount * whole))
    return max(found, default=0.0)


def _one_amount(ability: Ability, expected: Expected, arm: str, level: str) -> Finding:
    return not_tested(
        ability,
        f"{arm} and {ability.source} alone have both finished at one amount only ({level}); few "
        "and many data need two.",
        expected.figures,
    )


def _nothing_learned(ability: Ability, expected: Expected, arm: str, where: str) -> Finding:
    return not_tested(
        ability,
        f"Neither {arm} nor {ability.source} alone is shown to differ from the base {where} of "
        "each source.",
        expected.figures,
    )


def _too_few(ability: Ability, expected: Expected, what: str = "") -> Finding:
    what = what or f"{ability.source} alone"
    if expected.direction == "same":
        what += f" with {_PLATEAU_ROWS:,} rows or more"
    return not_tested(ability, f"The study has too few finished runs of {what}.", expected.figures)
