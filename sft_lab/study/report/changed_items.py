"""Items that a run forgot and regained, with the answers before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sft_lab.results import ItemAnswer, Point, RunResult
from sft_lab.study.report.abilities import Ability
from sft_lab.study.report.comparing import Measurements
from sft_lab.study.report.page import Table, TableCell

LONGEST = 400
"""Characters of a prompt or an answer that a page shows; the CSV has the whole text."""


@dataclass(frozen=True)
class ChangedItem:
    """An item whose mark differs between two evaluations of a run.

    Attributes:
        ability: What it measures.
        run: The run.
        kind: ``forgotten`` (right, then wrong) or ``regained`` (right earlier, wrong at the
            best stage end, right at the end).
        id: The item.
        prompt: What was asked.
        before: The answer at the stage end where the run's score stood highest.
        after: The answer at the end of training.
        stage: The stage after which ``before`` was given; ``base`` before training.
    """

    ability: Ability
    run: RunResult
    kind: Literal["forgotten", "regained"]
    id: str
    prompt: str
    before: str
    after: str
    stage: str


def changed_items(
    runs: Sequence[RunResult], abilities: Sequence[Ability], measured: Measurements
) -> list[ChangedItem]:
    """Return what changed in the run that forgot most of each ability; nothing where none forgot.

    Only right-or-wrong marks are told apart; ratings are left out.
    """
    found: list[ChangedItem] = []
    for ability in abilities:
        falls = [(*fall, run) for run in runs if (fall := _fall(run, ability)) is not None]
        if falls:
            depth, best, run = max(falls, key=lambda entry: entry[0])
            found += _between(run, best, ability, measured) if depth > 0 else []
    return found


def changed_table(changed: Sequence[ChangedItem], of_each: int = 3) -> list[Table]:
    """Return a table for each ability, of a few forgotten and regained items."""
    tables = []
    for ability in dict.fromkeys(item.ability for item in changed):
        mine = [item for item in changed if item.ability == ability]
        kinds = {k: [i for i in mine if i.kind == k] for k in ("forgotten", "regained")}
        chosen = [*kinds["forgotten"][:of_each], *kinds["regained"][: of_each - 1]]
        first = chosen[0]
        counts = f"{len(kinds['forgotten'])} items forgotten, {len(kinds['regained'])} regained"
        tables.append(
            Table(
                f"{ability.name} in {first.run.name}, the run that forgot most of it: {counts}; "
                f"the first of each. Before is after {first.stage}, after is the end of training.",
                ("item", "asked", "before", "after"),
                [
                    [
                        TableCell(item.id, item.kind),
                        _short(item.prompt),
                        _short(item.before),
                        _short(item.after),
                    ]
                    for item in chosen
                ],
                long_text=True,
            )
        )
    return tables


def _fall(run: RunResult, ability: Ability) -> tuple[float, Point] | None:
    """Return how far a run of several stages fell from its best stage end, and where that was."""
    last = run.last
    earlier = [p for p in run.boundaries if ability.key in p.scores and p is not last]
    if last is None or ability.key not in last.scores or not earlier or len(run.stages) < 2:
        return None
    best = max(earlier, key=lambda point: point.scores[ability.key].value)
    return best.scores[ability.key].value - last.scores[ability.key].value, best


def _between(
    run: RunResult, best: Point, ability: Ability, measured: Measurements
) -> list[ChangedItem]:
    last = run.last
    assert last is not None
    old, new = (measured.marks(run, ability, point.step) for point in (best, last))
    if old is None or new is None:
        return []
    earlier: list[Mapping[str, float]] = [
        measured.marks(run, ability, p.step) or {} for p in run.boundaries if p.step < best.step
    ]
    before, after = (_first(measured.answers(run, ability, p.step)) for p in (best, last))
    found = []
    for item in old:
        if item not in new or {old[item], new[item]} != {0.0, 1.0}:
            continue
        regained = new[item] == 1
        if regained and not any(marks.get(item) == 1 for marks in earlier):
            continue
        found.append(
            ChangedItem(
                ability,
                run,
                "regained" if regained else "forgotten",
                item,
                before[item].prompt,
                before[item].completion,
                after[item].completion,
                best.after or "base",
            )
        )
    return found


def _first(answers: Sequence[ItemAnswer]) -> dict[str, ItemAnswer]:
    found: dict[str, ItemAnswer] = {}
    for answer in answers:
        found.setdefault(answer.id, answer)
    return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " \N{HORIZONTAL ELLIPSIS}"
