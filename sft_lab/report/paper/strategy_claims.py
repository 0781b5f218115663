"""RQ4: claims on forgetting, on replay, and on training on all sources at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.controls import OF_MIXING, OF_REPLAY, PHRASES, Control
from sft_lab.analysis.forgetting import Drop, can_forget, drop_of
from sft_lab.analysis.groups import RunGroup, amount, controls_of, groups_of
from sft_lab.analysis.measurements import Comparison, Measurements, Side, end_of
from sft_lab.analysis.study_results import Question, StudyResults
from sft_lab.report.judging import describe, judge, not_tested
from sft_lab.report.page import Claim, Finding
from sft_lab.report.paper.amounts import alone_controls
from sft_lab.report.paper.claims import Expected, paper_claims

_NO_RUN = "there is no finished run of {}"
_NO_REPLAY = _NO_RUN.format("dmt with replay")
_OF_FORGETTING = ("stage_order", "optimizer")


@dataclass
class StrategyClaims:
    """Judges the claims on forgetting, on replay, and on training on all sources at once.

    Args:
        question: Arms are strategies by name; ``dmt`` has an axis k.
        results: The study, for the controls.
        abilities: The study's abilities.
        measured: Means and comparisons.
        best: The specialist of each ability.
        lost: The drops of each strategy.
    """

    question: Question
    results: StudyResults
    abilities: Sequence[Ability]
    measured: Measurements
    best: Mapping[Ability, RunGroup]
    lost: Sequence[Drop]

    def __post_init__(self) -> None:
        """Find the question's groups and replay sweeps."""
        self.groups = groups_of(self.question)
        self.sweeps = replay_sweeps(self.question)
        self.comparisons: list[Comparison] = []

    def claims(self) -> list[Claim]:
        """Return the claims that the question's arms speak of, with their findings."""
        little, much = _why_no_replay(self.groups)
        findings = {
            "sequential": self._judged("sequential", self._forgetting),
            "mixed_sequential": self._judged("mixed_sequential", self._forgetting),
            "little_replay": self._replayed("little_replay", self._little(), little, OF_REPLAY),
            "free_replay": self._replayed("free_replay", self._little(), little, OF_REPLAY),
            "more_replay": self._replayed("more_replay", self._much(), much, OF_MIXING),
            "trade": self._replayed("trade", self._much(), much, OF_MIXING),
            "multi_task_keeps": self._judged("multi_task_keeps", self._multi_task),
            "multi_task_lowers": self._judged("multi_task_lowers", self._multi_task),
        }
        self._compare_all_shares()
        known = paper_claims()
        return [known[n].judged(self.question.name, f) for n, f in findings.items() if f]

    def _judged(self, name: str, judge_one: "_JudgeOne") -> list[Finding]:
        expected = paper_claims()[name].expected(self.abilities)
        return [found for a, e in expected for found in judge_one(name, a, e)]

    def _compare(self, ability: Ability, before: RunGroup, after: RunGroup) -> Comparison:
        place = f"{self.question.name} replay"
        found = self.measured.compare(place, ability, end_of(before), end_of(after))
        self.comparisons.append(found)
        return found

    def _forgetting(self, arm: str, ability: Ability, expected: Expected) -> list[Finding]:
        mine = [group for group in self.groups if group.arm == arm]
        trained = [group for group in mine if group.runs]
        findings = []
        for drop in self.lost:
            group = next((g for g in trained if g.run_ids == drop.group.run_ids), None)
            if group is None or drop.comparison.ability != ability:
                continue
            found = judge(
                ability,
                expected.direction,
                [drop.comparison],
                self.measured,
                f"{arm}, from {_after(drop.best)} to the end of training",
                paper=expected.figures,
            )
            variants = " ".join(self._variants(group, ability))
            findings.append(replace(found, sentence=f"{found.sentence} {variants}".strip()))
        if findings or not mine:
            return findings
        why = f"{arm} was measured at no earlier stage end" if trained else _NO_RUN.format(arm)
        return [_not_compared(ability, why, expected)]

    def _variants(self, group: RunGroup, ability: Ability) -> list[str]:
        """Return what is forgotten with stages in another order, or another hand-over."""
        sentences = []
        for control in controls_of(self.results, group):
            if control.control not in _OF_FORGETTING:
                continue
            drop = drop_of(f"{self.question.name} forgetting", control, ability, self.measured)
            if drop is None or drop.comparison.difference is None:
                continue
            if not can_forget(control, ability):
                continue
            self.comparisons.append(drop.comparison)
            lead = f"Control {control.control} ({PHRASES[control.control]})"
            found = describe(drop.comparison)
            sentences.append(f"{lead}, from {_after(drop.best)} to the end: {found}")
        return sentences

    def _replayed(
        self,
        name: str,
        pairs: Sequence[tuple[RunGroup, RunGroup]],
        why: str,
        needs: Sequence[Control],
    ) -> list[Finding]:
        """Judge replay against none, with fresh rows in its place, or more of it against less.

        The control of more replay is the lesser share at equal steps.
        """
        findings = []
        for ability, expected in paper_claims()[name].expected(self.abilities):
            for before, after in pairs:
                controls = {
                    control.control: [self._compare(ability, control, after)]
                    for control in controls_of(
                        self.results, after if needs is OF_REPLAY else before
                    )
                    if control.control in needs
                }
                found = judge(
                    ability,
                    expected.direction,
                    [self._compare(ability, before, after)],
                    self.measured,
                    paper=expected.figures,
                    controls=controls,
                    needs=needs,
                )
                findings.append(found)
            if why and not pairs:
                findings.append(_not_compared(ability, why, expected))
        return findings

    def _multi_task(self, _: str, ability: Ability, expected: Expected) -> list[Finding]:
        mine = [group for group in self.groups if group.arm == "multi_task"]
        trained = [group for group in mine if group.runs]
        reference = self.best.get(ability)
        if not mine:
            return []
        if not trained or reference is None:
            missing = f"{ability.source} alone" if trained else "multi_task"
            return [_not_compared(ability, _NO_RUN.format(missing), expected)]
        return [
            judge(
                ability,
                expected.direction,
                [self._compare(ability, reference, group)],
                self.measured,
                paper=expected.figures,
                controls=alone_controls(self.results, ability, group, self._compare),
                needs=OF_MIXING,
            )
            for group in trained
        ]

    def _little(self) -> list[tuple[RunGroup, RunGroup]]:
        """Return no replay with the least share of it, of each sweep that has both."""
        return [(none[0], some[0]) for none, some in map(_parts, self.sweeps) if none and some]

    def _much(self) -> list[tuple[RunGroup, RunGroup]]:
        """Return the least share with the greatest, of each sweep that has two."""
        return [(some[0], some[-1]) for _, some in map(_parts, self.sweeps) if len(some) > 1]

    def _compare_all_shares(self) -> None:
        """Compare the shares between, which the table of comparisons shows."""
        for none, some in map(_parts, self.sweeps):
            for ability in self.abilities:
                for group in some[1:]:
                    if none:
                        self._compare(ability, none[0], group)
                for group in some[1:-1]:
                    self._compare(ability, some[0], group)


_JudgeOne = Callable[[str, Ability, Expected], list[Finding]]


def _parts(sweep: "Sweep") -> tuple[list[RunGroup], list[RunGroup]]:
    """Return the groups without replay and with it, from the least share on."""
    none = [group for k, group in sweep.groups.items() if not amount(k)]
    return none, [group for k, group in sweep.groups.items() if amount(k)]


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


def _not_compared(ability: Ability, why: str, expected: Expected) -> Finding:
    return not_tested(ability, f"Not compared, because {why}.", expected.figures)


def _after(side: Side) -> str:
    return "the base" if side.stage == "base" else f"the end of {side.stage}"
