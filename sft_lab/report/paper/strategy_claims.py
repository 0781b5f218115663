"""RQ4: claims on forgetting, on replay, and on training on all sources at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sft_lab.analysis.abilities import Ability, general_of, special_of
from sft_lab.analysis.forgetting import Drop
from sft_lab.analysis.groups import RunGroup, amount, groups_of
from sft_lab.analysis.measurements import Comparison, Measurements, Side, corrected, end_of
from sft_lab.analysis.study_results import Question
from sft_lab.report.judging import judge_direction, judge_no_loss
from sft_lab.report.page import Claim, Finding

_Judge = Callable[[Comparison], Finding]
_NO_RUN = "there is no finished run of {}"
_NO_REPLAY = _NO_RUN.format("dmt with replay")

_FORGETS = (
    "a forgetting of math, not of code: GSM8K ends 17.7, 12.3 and 10.6 points below the specialist "
    "at 7B, 13B and 33B, HumanEval within 3.1. It reports no score after the first stage, so the "
    "drop is read against the specialist."
)
_MIXED_FORGETS = "GSM8K ends 16.5, 10.9 and 13.7 points below the specialist, HumanEval within 3.2."
_KEEPS = "replaying 1/256 lifts GSM8K by 9.3, 6.0 and 12.1 points over mixed sequential."
_FREE = "MT-Bench is 6.08, 6.03 and 6.73 against 6.02, 5.93 and 6.43 of mixed sequential."
_MORE = "GSM8K rises from 41.9 % to 45.8 % (7B, k from 1/256 to 1); HumanEval falls at 7B."
_TRADE = "MT-Bench falls from 6.08 to 5.63 (7B) and from 6.03 to 5.76 (13B), k from 1/256 to 1."
_MULTI = "GSM8K ends 0.5 to 1.6 points below the specialist; HumanEval 7.9 below to 2.4 above."
_CONFLICT = "MT-Bench ends 0.12, 0.40 and 0.56 below the specialist at 7B, 13B and 33B."


def strategy_claims(
    question: Question,
    abilities: Sequence[Ability],
    measured: Measurements,
    table: Sequence[Comparison],
    lost: Sequence[Drop],
) -> tuple[list[Claim], list[Comparison]]:
    """Judge the claims on forgetting, on replay, and on training on all sources at once.

    Args:
        question: Arms are strategies by name; ``dmt`` has an axis k.
        abilities: The study's abilities.
        measured: Means and comparisons.
        table: Every strategy against the specialists.
        lost: The drops of each strategy.

    Returns:
        Claims, and the comparisons of replay shares they rest on.
    """
    general, special = general_of(abilities), special_of(abilities)
    replay = _replay_comparisons(question, abilities, measured)

    groups = groups_of(question)
    why_little, why_much = _why_no_replay(groups)

    def forgetting(arm: str) -> list[Finding]:
        mine = [group for group in groups if group.arm == arm]
        trained = [group.run_ids for group in mine if group.runs]
        why = f"{arm} was measured at no earlier stage end"
        findings = []
        for ability in special if mine else ():
            found = [
                judge_direction(
                    drop.comparison, -1, f"{arm}, from {_after(drop.best)} to the end of training"
                )
                for drop in lost
                if drop.group.run_ids in trained and drop.comparison.ability == ability
            ]
            findings += found or [_inconclusive(ability, why if trained else _NO_RUN.format(arm))]
        return findings

    def replayed(
        wanted: Sequence[Ability], comparisons: Sequence[Comparison], judge: _Judge, why: str
    ) -> list[Finding]:
        findings = []
        for ability in wanted:
            found = [judge(c) for c in comparisons if c.ability == ability]
            findings += found or ([_inconclusive(ability, why)] if why else [])
        return findings

    def multi_task(wanted: Sequence[Ability], judge: _Judge) -> list[Finding]:
        mine = [group for group in groups if group.arm == "multi_task"]
        trained = [group.run_ids for group in mine if group.runs]
        labels = [group.label for group in groups if group.run_ids in trained]
        findings = []
        for ability in wanted if mine else ():
            found = [judge(c) for c in table if c.after in labels and c.ability == ability]
            missing = f"{ability.source} alone" if trained else "multi_task"
            findings += found or [_inconclusive(ability, _NO_RUN.format(missing))]
        return findings

    rises, falls = partial(judge_direction, sign=1), partial(judge_direction, sign=-1)
    claims = [
        Claim(
            question.name,
            "Training in sequence forgets math and code",
            _FORGETS,
            forgetting("sequential"),
        ),
        Claim(
            question.name,
            "Mixed sequential forgets them as well",
            _MIXED_FORGETS,
            forgetting("mixed_sequential"),
        ),
        Claim(
            question.name,
            "A little replay keeps more of them (DMT against none)",
            _KEEPS,
            replayed(special, replay.little, rises, why_little),
        ),
        Claim(
            question.name,
            "That replay costs the general ability nothing",
            _FREE,
            replayed(general, replay.little, judge_no_loss, why_little),
        ),
        Claim(
            question.name,
            "More replay raises the special abilities further",
            _MORE,
            replayed(special, replay.much, rises, why_much),
        ),
        Claim(
            question.name,
            "More replay lowers the general ability",
            _TRADE,
            replayed(general, replay.much, falls, why_much),
        ),
        Claim(
            question.name,
            "Multi-task training keeps the special abilities at the specialist's level",
            _MULTI,
            multi_task(special, judge_no_loss),
        ),
        Claim(
            question.name,
            "Multi-task training lowers the general ability",
            _CONFLICT,
            multi_task(general, falls),
        ),
    ]
    return [claim for claim in claims if claim.findings], replay.all


def _why_no_replay(groups: Sequence[RunGroup]) -> tuple[str, str]:
    """Return why the least share cannot be compared with none, and the greatest with the least.

    Empty if the study does not ask for that.
    """
    dmt = [group for group in groups if group.arm == "dmt" and group.axis]
    if dmt and not any("k" in group.axis for group in dmt):
        why = "dmt has no axis k, which names its replay shares"
        return why, why
    some = [group for group in dmt if amount(group.axis.get("k", ""))]
    none = [group for group in groups if group.arm == "mixed_sequential"]
    none += [group for group in dmt if amount(group.axis.get("k", "")) == 0]
    with_replay = any(group.runs for group in some)
    little = "there is no finished run without replay" if with_replay else _NO_REPLAY
    much = "there are no two finished replay shares of dmt"
    return little if some and none else "", much if len(some) > 1 else ""


@dataclass(frozen=True)
class Sweep:
    """DMT over its replay share, all else the same.

    Attributes:
        name: Its name.
        groups: The groups with finished runs by k as it is written, from the least on.
    """

    name: str
    groups: Mapping[str, RunGroup]


def replay_sweeps(question: Question) -> list[Sweep]:
    """Return the sweeps of ``dmt`` over its axis ``k``; mixed sequential is k = 0."""
    groups = groups_of(question)
    series: dict[tuple[tuple[str, str], ...], dict[str, RunGroup]] = {}
    for group in groups:
        k = group.axis.get("k", "")
        if group.arm == "dmt" and amount(k) is not None:
            others = tuple((name, value) for name, value in group.axis.items() if name != "k")
            series.setdefault(others, {})[k] = group
    sweeps = []
    for others, planned in series.items():
        found = {k: group for k, group in planned.items() if group.runs}
        none = [g for g in groups if g.arm == "mixed_sequential" and g.axis == dict(others)]
        if none and none[0].runs and not any(amount(k) == 0 for k in found):
            found["0"] = none[0]
        name = ", ".join(["dmt", *(f"{axis} = {value}" for axis, value in others)])
        sweeps.append(Sweep(name, dict(sorted(found.items(), key=lambda kg: amount(kg[0]) or 0))))
    return sweeps


@dataclass(frozen=True)
class _Replay:
    """Comparisons of replay shares: the least with none, the greatest with the least, all."""

    little: Sequence[Comparison]
    much: Sequence[Comparison]
    all: list[Comparison]


def _replay_comparisons(
    question: Question, abilities: Sequence[Ability], measured: Measurements
) -> _Replay:
    little, much, rest = [], [], []
    for sweep in replay_sweeps(question):
        none = [group for k, group in sweep.groups.items() if not amount(k)]
        some = [group for k, group in sweep.groups.items() if amount(k)]
        little += list(zip(none, some[:1], strict=False))
        much += [(some[0], some[-1])] if len(some) > 1 else []
        rest += [(none[0], group) for group in some[1:] if none]
        rest += [(some[0], group) for group in some[1:-1]]
    tests = [(ability, pair) for ability in abilities for pair in [*little, *rest, *much]]
    comparisons = corrected(
        measured.compare(f"{question.name} replay", ability, end_of(a), end_of(b))
        for ability, (a, b) in tests
    )

    def of(pairs: Sequence[tuple[RunGroup, RunGroup]]) -> list[Comparison]:
        return [c for (_, pair), c in zip(tests, comparisons, strict=True) if pair in pairs]

    return _Replay(of(little), of(much), comparisons)


def _inconclusive(ability: Ability, why: str) -> Finding:
    return Finding(ability.name, "inconclusive", f"Not compared, because {why}.")


def _after(side: Side) -> str:
    return "the base" if side.stage == "base" else f"the end of {side.stage}"
