"""Items that a run forgot and regained, with the answers before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.measurements import Measurements
from sft_lab.report.page import Table, TableCell
from sft_lab.runs.results import ItemAnswer, Point, RunResult

LONGEST = 400
"""Characters of a prompt or an answer that a page shows; the CSV has the whole text."""


Kind = Literal["forgotten", "regained"]


@dataclass(frozen=True)
class ChangedItem:
    """An item whose mark differs between two evaluations of a run.

    Attributes:
        ability: What it measures.
        run: The run.
        kind: ``forgotten`` (right at the stage end where the run's score stood highest, wrong at
            the end) or ``regained`` (right, then wrong at a later stage end, right at the end).
        id: The item.
        prompt: What was asked.
        before: The right answer that was forgotten, or the wrong one that was mended.
        after: The answer at the end of training.
        stage: The stage after which ``before`` was given; ``base`` before training.
    """

    ability: Ability
    run: RunResult
    kind: Kind
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
                "the first of each. Before is the stage end named below the item, after the end of "
                "training.",
                ("item", "asked", "before", "after"),
                [
                    [
                        TableCell(item.id, f"{item.kind}\nbefore: {item.stage}"),
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
    """Return the items lost since the best stage end, and those lost and won back meanwhile."""
    points = [point for point in run.boundaries if ability.key in point.scores]
    tables = [measured.marks(run, ability, point.step) or {} for point in points]
    answers = [_first(measured.answers(run, ability, point.step)) for point in points]
    end = len(points) - 1
    found: list[ChangedItem] = []
    kind: Kind
    for item, mark in tables[end].items():
        history = [table.get(item) for table in tables]
        if mark == 0 and history[points.index(best)] == 1:
            kind, before = "forgotten", points.index(best)
        elif mark == 1 and 1 in history[: (lost := _last_wrong(history))]:
            kind, before = "regained", lost
        else:
            continue
        old, new = answers[before][item], answers[end][item]
        stage = points[before].after or "base"
        found.append(
            ChangedItem(ability, run, kind, item, old.prompt, old.completion, new.completion, stage)
        )
    return found


def _last_wrong(history: Sequence[float | None]) -> int:
    """Return where an item was last wrong before the end; 0 where it never was."""
    return max((n for n, mark in enumerate(history[:-1]) if mark == 0), default=0)


def _first(answers: Sequence[ItemAnswer]) -> dict[str, ItemAnswer]:
    found: dict[str, ItemAnswer] = {}
    for answer in answers:
        found.setdefault(answer.id, answer)
    return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " \N{HORIZONTAL ELLIPSIS}"
