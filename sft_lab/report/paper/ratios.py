"""RQ3: whether an ability depends on how much of the other sources is mixed in."""

import re
from collections.abc import Sequence

from sft_lab.analysis.abilities import GENERAL, Ability, taught
from sft_lab.analysis.groups import RunGroup, amount, series_of
from sft_lab.analysis.measurements import Comparison, Measurements, corrected, end_of
from sft_lab.analysis.study_results import Question
from sft_lab.report.judging import judge_direction, judge_no_effect
from sft_lab.report.page import Claim, Finding

_OWN = (
    "yes: with all chat, GSM8K rises from 16.5 % to 47.5 % with math and code from 1/256 to all; "
    "with all math and code, MT-Bench rises from 4.69 to 5.76 with chat from 1/256 to all."
)
_OTHERS = (
    "no: GSM8K stays at 47.2 to 48.5 % whatever the amount of chat, and MT-Bench at 5.76 to 5.84 "
    "whatever the amount of math and code; HumanEval fluctuates."
)


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
    names += re.findall(r"([a-z]+)_(?:vary|varied|varies)", group.arm)
    return next((meaning[name] for name in names if name in meaning), frozenset())


def ratio_claims(
    question: Question, abilities: Sequence[Ability], measured: Measurements
) -> tuple[list[Claim], list[Comparison]]:
    """Judge whether an ability depends on its own data, and on the amount of the others."""
    abilities = taught(abilities)
    compared: list[tuple[str, RunGroup, Ability, Comparison]] = []
    series = series_of(question)
    for arm, groups in series.items():
        finished = [group for group in groups if group.runs]
        for ability in abilities if len(finished) > 1 else ():
            full = finished[-1]
            for group in finished[:-1]:
                sides = (full, group)
                if ability.source in varied(group, abilities):
                    sides = (group, full)  # the claim is a rise
                before, after = map(end_of, sides)
                found = measured.compare(question.name, ability, before, after)
                compared.append((arm, group, ability, found))
    comparisons = corrected(comparison for *_, comparison in compared)
    by: dict[tuple[str, Ability], list[tuple[RunGroup, Comparison]]] = {}
    for (arm, group, ability, _), comparison in zip(compared, comparisons, strict=True):
        by.setdefault((arm, ability), []).append((group, comparison))
    own, others = [], []
    for (arm, ability), levels in by.items():
        least, first = levels[0]
        changed = sorted(varied(least, abilities))
        if not changed:
            sentence = f"{arm}: its names do not say which source varies; name its axis after it."
            others.append(Finding(ability.name, "inconclusive", sentence))
        elif ability.source in changed:
            greatest = next(group.level for group in reversed(series[arm]) if group.runs)
            whole = "all" if amount(greatest) == 1 else greatest
            lead = f"{arm}, from {least.level} to {whole} of {' and '.join(changed)}"
            own.append(judge_direction(first, 1, lead))
        else:
            lead = f"{arm}, {' and '.join(changed)} varied, its own data the same"
            tested = [comparison for _, comparison in levels]
            others.append(judge_no_effect(tested, len(series[arm]) - 1, lead))
    claims = [
        Claim(question.name, "An ability depends on the amount of its own data", _OWN, own),
        Claim(
            question.name,
            "An ability does not depend on the amount of the other sources",
            _OTHERS,
            others,
        ),
    ]
    return [claim for claim in claims if claim.findings], comparisons
