"""The items that runs forgot and gained, as tables for reading."""

from sft_lab.analysis.forgetting import Changed
from sft_lab.report.page import Table, TableCell
from sft_lab.terminal import counted

LONGEST = 400
"""Characters of a prompt or an answer that a page shows; the CSV has the whole text."""


def changed_tables(changed: Changed, of_each: int = 3) -> list[Table]:
    """Return a table for each ability, of a few forgotten and gained items."""
    tables = []
    for name, (run, items) in changed.items():
        forgotten = [item for item in items if item.kind == "forgotten"]
        gained = [item for item in items if item.kind == "gained"]
        tables.append(
            Table(
                f"{name} in {run.name}, the run that forgot most of it: "
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


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " \N{HORIZONTAL ELLIPSIS}"
