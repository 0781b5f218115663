"""RQ1 and RQ2: abilities by amount of data, one source alone and all sources mixed."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from sft_lab.analysis.abilities import Ability, taught
from sft_lab.analysis.groups import RunGroup, amount, series_of
from sft_lab.analysis.measurements import Comparison, Measurements, boundary_of, corrected, end_of
from sft_lab.analysis.study_results import Question, StudyResults
from sft_lab.report.judging import judge_direction
from sft_lab.report.page import Claim, Finding

_RISES = (
    "GSM8K rises with its data at 7B, 13B and 33B (7B: 12.7 % with 1/256 to 49.1 % with all); "
    "HumanEval rises overall, irregularly at 7B and 13B; MT-Bench appears by about 1,000 rows "
    "and then grows slowly."
)
_GAINS = (
    "with 1/256 of each source, mixing gains (7B: GSM8K by 2.1, HumanEval by 5.9, MT-Bench by "
    "0.11); its single arm for math seems to use other data, which flatters mixing."
)
_LOSES = "with all data, mixing loses (7B: GSM8K by 1.6, HumanEval by 3.8, MT-Bench by 0.12)."


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
    question: Question, abilities: Sequence[Ability], measured: Measurements
) -> tuple[list[Claim], list[Comparison]]:
    """Judge whether each ability rises with its own data."""
    abilities = taught(abilities)
    series = [
        (ability, _with_runs(groups))
        for ability in abilities
        for groups in own_series(question, ability) or [[]]
    ]
    tests = []
    for place, (ability, groups) in enumerate(series):
        ends = [(groups[0], groups[-1])] if len(groups) > 2 else []
        tests += [(place, ability, a, b) for a, b in [*ends, *pairwise(groups)]]
    comparisons = corrected(
        measured.compare(question.name, ability, end_of(a), end_of(b)) for _, ability, a, b in tests
    )
    findings = []
    for place, (ability, groups) in enumerate(series):
        if len(groups) < 2:
            findings.append(_too_few(ability, f"{ability.source} alone"))
            continue
        own = [c for (of, *_), c in zip(tests, comparisons, strict=True) if of == place]
        levels = [group.level for group in groups]
        lead = f"{groups[0].named('alone')}, from {levels[0]} to {levels[-1]}"
        found = judge_direction(own[0], 1, lead)
        steps_text = _steps(levels, own[1:] if len(own) > 1 else own)
        findings.append(Finding(ability.name, found.judgement, f"{found.sentence} {steps_text}"))
    claim = Claim(question.name, "Each ability rises with its own data", _RISES, findings)
    return [claim], comparisons


def mixed_claims(
    question: Question,
    single: Question | None,
    abilities: Sequence[Ability],
    measured: Measurements,
) -> tuple[list[Claim], list[Comparison]]:
    """Judge mixing of the sources against each alone, at equal amounts."""
    abilities = taught(abilities)
    arms = series_of(question)
    pairs = [
        (arm, ability, alone, mixed)
        for arm, groups in arms.items()
        for ability in abilities
        for series in own_series(single, ability)
        for alone, mixed in _equal_amounts(series, groups)
    ]
    comparisons = corrected(
        measured.compare(question.name, ability, end_of(alone), end_of(mixed))
        for _, ability, alone, mixed in pairs
    )

    def learnt(ability: Ability, groups: Iterable[RunGroup]) -> bool:
        ends = [(measured.mean(ability, end_of(g)), g) for g in groups]
        bases = [(end, measured.mean(ability, boundary_of(g, 0))) for end, g in ends]
        return any(end and base and end.low > base.high for end, base in bases)

    def claim(text: str, paper: str, at: int, sign: int) -> Claim:
        findings = []
        for arm in arms:
            for ability in abilities:
                found = [
                    (comparison, mixed.level, learnt(ability, (alone, mixed)))
                    for (of, wanted, alone, mixed), comparison in zip(
                        pairs, comparisons, strict=True
                    )
                    if (of, wanted) == (arm, ability)
                ]
                if not found:
                    findings.append(_too_few(ability, f"{arm} against {ability.source} alone"))
                    continue
                if len(found) == 1:
                    findings.append(_one_amount(ability, arm, found[0][1]))
                    continue
                # As long as neither is above the base, mixing can neither gain nor lose.
                last = len(found) - 1
                first = next((n for n, (*_, learns) in enumerate(found) if learns), last)
                comparison, level, learns = found[first if at == 0 else last]
                if not learns or (at == 0 and first == last):
                    where = f"below {found[-1][1]}" if at == 0 else f"at {level}"
                    findings.append(_nothing_learnt(ability, arm, where))
                    continue
                lead = f"{arm} against alone, at {level} of each source"
                if at == 0 and first > 0:
                    lead += ", the least amount from which either is above the base"
                findings.append(judge_direction(comparison, sign, lead))
        return Claim(question.name, text, paper, findings)

    claims = [
        claim("Mixing gains where data are few", _GAINS, 0, 1),
        claim("Mixing loses where data are many", _LOSES, -1, -1),
    ]
    return claims, comparisons


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


def _one_amount(ability: Ability, arm: str, level: str) -> Finding:
    return Finding(
        ability.name,
        "inconclusive",
        f"{arm} and {ability.source} alone have both finished at one amount only ({level}); few "
        "and many data need two.",
    )


def _nothing_learnt(ability: Ability, arm: str, where: str) -> Finding:
    return Finding(
        ability.name,
        "inconclusive",
        f"Neither {arm} nor {ability.source} alone is shown above the base {where} of each source.",
    )


def _too_few(ability: Ability, what: str) -> Finding:
    return Finding(ability.name, "inconclusive", f"The study has too few finished runs of {what}.")
