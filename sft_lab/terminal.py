"""Tables for people: plain text, columns aligned, percent instead of shares."""

import logging
import os
import warnings
from collections.abc import Sequence


def percent(score: float) -> str:
    """Return a score in [0, 1] as percent.

    >>> percent(0.855)
    '85.5'
    """
    return f"{100 * score:.1f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with the first column aligned left, the others right.

    >>> print(format_table(["run", "math"], [["dmt", "85.5"]]))
    run  math
    dmt  85.5
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join(
            [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        ).rstrip()

    return "\n".join(line(cells) for cells in (header, *rows))


def silence() -> None:
    """Keep the libraries' advice out of what a person watches; their warnings stay."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*is_gradient_checkpointing.*",
        ".*LeafSpec.*",
        ".*does not have many workers.*",
    ):
        warnings.filterwarnings("ignore", message=message)
