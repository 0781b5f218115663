"""The items that runs forgot and gained, as tables for reading."""

from collections.abc import Mapping, Sequence

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.forgetting import ChangedItem, changed_items, reference_of
from sft_lab.analysis.measurements import Measurements
from sft_lab.report.page import Table, TableCell
from sft_lab.runs.results import RunResult
from sft_lab.terminal import counted

LONGEST = 400
"""Characters of a prompt or an answer that a page shows; the CSV has the whole text."""

Changed = Mapping[Ability, tuple[RunResult, Sequence[ChangedItem]]]
"""By ability, the run of several stages that forgot most of it, and what changed there."""


def most_forgotten(
    runs: Sequence[RunResult], abilities: Sequence[Ability], measured: Measurements
) -> Changed:
    """Return the items that changed in the run that forgot most of each ability."""
    found = {}
    for ability in abilities:
        falls = [(_fall(run, ability), run) for run in runs if len(run.stages) > 1]
        depth, run = max(falls, key=lambda fall: fall[0], default=(0.0, None))
        if run is not None and depth > 0 and (items := changed_items(run, ability, measured)):
            found[ability] = (run, items)
    return found


def changed_tables(changed: Changed, of_each: int = 3) -> list[Table]:
    """Return a table for each ability, of a few forgotten and gained items."""
    tables = []
    for ability, (run, items) in changed.items():
        forgotten = [item for item in items if item.kind == "forgotten"]
        gained = [item for item in items if item.kind == "gained"]
        tables.append(
            Table(
                f"{ability.name} in {run.name}, the run that forgot most of it: "
                f"{counted(len(forgotten), 'item')} forgotten, {len(gained)} gained; the first of "
                "each. Before is its best stage end, named below the item, after the end of "
                "training.",
                ("item", "question", "before", "after"),
                [
                    [
                        TableCell(item.id, f"{item.kind}\nbefore: {item.stage}"),
                        _short(item.prompt),
                        _short(item.before),
                        _short(item.after),
                    ]
                    for item in [*forgotten[:of_each], *gained[: of_each - 1]]
                ],
                long_text=True,
            )
        )
    return tables


def _fall(run: RunResult, ability: Ability) -> float:
    reference = reference_of(run, ability)
    if reference is None or run.last is None:
        return 0.0
    return reference.score.value - run.last.scores[ability.key].value


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " \N{HORIZONTAL ELLIPSIS}"
