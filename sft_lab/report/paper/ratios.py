"""RQ3: whether an ability depends on how much of the other sources is mixed in."""

import re
from collections.abc import Sequence

from sft_lab.analysis.abilities import GENERAL, Ability
from sft_lab.analysis.controls import OF_MIXING
from sft_lab.analysis.groups import RunGroup, amount, controls_of, series_of
from sft_lab.analysis.measurements import Comparison, Measurements, end_of
from sft_lab.analysis.study_results import Question, StudyResults
from sft_lab.report.judging import judge, not_tested
from sft_lab.report.page import Claim, Finding
from sft_lab.report.paper.claims import Expected, paper_claims


def varied(group: RunGroup, abilities: Sequence[Ability]) -> frozenset[str]:
    """Return the sources whose amount a group's arm varies, read from its names.

    The axis may be named after a source, ``general`` or ``special`` (all but the general one);
    else the arm says it, as in ``vary_general`` or ``special_varied``. Empty if neither does.
    """
    sources = {ability.source for ability in abilities if ability.source}
    special = frozenset(sources - {GENERAL})
    meaning = {name: frozenset({name}) for name in (*sources, GENERAL)}
    meaning |= {"special": special, "specialized": special}
    axis = next(iter(group.axis), "")
    names = [axis, *re.findall(r"(?:vary|varied|varying)_([a-z]+)", group.arm)]
    names += re.findall(r"(?<![a-z])([a-z]+)_(?:vary|varied|varies)", group.arm)
    return next((meaning[name] for name in names if name in meaning), frozenset())


def ratio_claims(
    question: Question,
    results: StudyResults,
    abilities: Sequence[Ability],
    measured: Measurements,
) -> tuple[list[Claim], list[Comparison]]:
    """Judge whether an ability depends on its own data, and on the amount of the others."""
    made: list[Comparison] = []

    def compare(ability: Ability, before: RunGroup, after: RunGroup) -> Comparison:
        found = measured.compare(question.name, ability, end_of(before), end_of(after))
        made.append(found)
        return found

    def own(ability: Ability, expected: Expected, arm: str, groups: Sequence[RunGroup]) -> Finding:
        least, greatest = groups[0], groups[-1]
        whole = "all" if amount(greatest.level) == 1 else greatest.level
        sources = " and ".join(sorted(varied(least, abilities)))
        # The levels between are shown in the table, and no claim.
        return judge(
            ability,
            expected.direction,
            [compare(ability, least, greatest)],
            measured,
            f"{arm}, from {least.level} to {whole} of {sources}",
            paper=expected.figures,
            controls={
                control.control: [compare(ability, control, greatest)]
                for control in controls_of(results, least)
                if control.control in OF_MIXING and not control.alone
            },
            needs=OF_MIXING,
        )

    def others(
        ability: Ability, expected: Expected, arm: str, groups: Sequence[RunGroup]
    ) -> Finding:
        sources = " and ".join(sorted(varied(groups[0], abilities)))
        finished = [group for group in groups if group.runs]
        full = finished[-1]
        # At equal steps a smaller mixture repeats the ability's own rows, which is no control here.
        return judge(
            ability,
            expected.direction,
            [compare(ability, full, group) for group in groups if group is not full],
            measured,
            f"{arm}, {sources} varied, its own data the same",
            paper=expected.figures,
        )

    claims = []
    for name in ("own_amount", "other_amounts"):
        claim, findings = paper_claims()[name], []
        for arm, groups in series_of(question).items():
            finished = [group for group in groups if group.runs]
            for ability, expected in claim.expected(abilities) if len(finished) > 1 else ():
                changed = varied(groups[0], abilities)
                if not changed and name == "other_amounts":
                    sentence = f"{arm}: its names do not say which source varies; name its axis"
                    findings.append(not_tested(ability, f"{sentence} after it.", expected.figures))
                elif name == "own_amount" and ability.source in changed:
                    findings.append(own(ability, expected, arm, finished))
                elif name == "other_amounts" and changed and ability.source not in changed:
                    findings.append(others(ability, expected, arm, groups))
        if findings:
            claims.append(claim.judged(question.name, findings))
    return claims, made
