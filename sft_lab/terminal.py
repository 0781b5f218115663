"""Tables for people: plain text, columns aligned, percent instead of shares."""

import json
import logging
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from typing_extensions import override

from sft_lab.errors import RequestError


def percent(score: float) -> str:
    """Return a score in [0, 1] as percent.

    >>> percent(0.855)
    '85.5'
    """
    return f"{100 * score:.1f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, in the singular or plural.

    Args:
        number: The number.
        one: The noun, with its verb if that changes.
        many: The plural; by default with an s.

    >>> counted(1, "row"), counted(2000, "row"), counted(0, "row repeats", "rows repeat")
    ('1 row', '2,000 rows', '0 rows repeat')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1: ESC clears a terminal
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reverse the text after them
    r"\u2028\u2029\ud800-\udfff]"  # line breaks to some readers; no character at all
)


def visible(text: str) -> str:
    r"""Return text with its control characters escaped; tabs and line feeds stay.

    Rows, answers and names come from strangers: on their way to a terminal or a file they must not
    move the cursor, clear the screen, or make text read backwards.

    >>> visible("a\x1b[2Jb\u202ec")
    'a\\x1b[2Jb\\u202ec'
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def to_json(value: Any) -> str:
    r"""Return a value as indented JSON in which only control characters are escaped.

    >>> print(to_json("ü\u202e"))
    "ü\u202e"
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], text)


class VisibleFormatter(logging.Formatter):
    """Formats log records as one text without control characters."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with the first column aligned left, the others right.

    >>> print(format_table(["run", "math"], [["dmt", "85.5"]]))
    run  math
    dmt  85.5
    """
    header = [_cell(name) for name in header]
    rows = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join(
            [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        ).rstrip()

    return "\n".join(line(cells) for cells in (header, *rows))


def columns() -> int | None:
    """Return the width to print in, ``COLUMNS`` or a terminal's; None for a file or a pipe."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return None


def fitted_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    keys: int = 1,
    bold: Collection[int] = (),
    joined: Collection[int] = (),
) -> str:
    """Return a table that is not wider than the terminal.

    Columns that do not fit follow in further blocks below, each of which begins with the columns
    that name the rows, and leaves out rows that have nothing in it.

    Args:
        header: The columns.
        rows: Cells by row.
        keys: How many of the first columns name the rows.
        bold: Rows to print in bold, by their index.
        joined: Columns that stay in a block with the one before, by their index.
    """
    room = columns()
    widths = [max(len(_cell(line[n])) for line in (header, *rows)) for n in range(len(header))]
    blocks = [list(range(keys))]
    for first in (n for n in range(keys, len(header)) if n not in joined):
        unit = [first]
        while unit[-1] + 1 in joined:
            unit.append(unit[-1] + 1)
        taken = sum(widths[n] + 2 for n in (*blocks[-1], *unit)) - 2
        if room is not None and taken > room and len(blocks[-1]) > keys:
            blocks.append(list(range(keys)))
        blocks[-1] += unit
    parts = []
    for block in blocks:
        values = block[keys:]
        shown = {
            index: [row[n] for n in block]
            for index, row in enumerate(rows)
            if len(blocks) == 1 or not any(row[:keys]) or any(row[n] for n in values)
        }
        head, *lines = format_table([header[n] for n in block], [*shown.values()]).splitlines()
        styled = zip(shown, lines, strict=True)
        parts.append([head, *(f"{_BOLD}{s}{_PLAIN}" if n in bold else s for n, s in styled)])
    return "\n\n".join("\n".join(part) for part in parts)


_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def wrapped(text: str, indent: str = "  ") -> str:
    """Return a line of text broken between words where the terminal ends, continued by an indent.

    A file or a pipe gets it on one line.
    """
    room = columns()
    if room is None or len(text) <= room:
        return text
    return textwrap.fill(
        text, room, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def size_text(size: int) -> str:
    """Return a number of bytes with its unit.

    >>> size_text(1_500_000), size_text(20 * 2**30)
    ('1.4 MiB', '20.0 GiB')
    """
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def size_of(option: str, text: str) -> int:
    """Return the number of bytes that a text names.

    >>> size_of("--memory", "24GiB"), size_of("--memory", "80 GB")
    (25769803776, 80000000000)

    Raises:
        RequestError: If it is no size above 0 with a unit.
    """
    units = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "TiB": 2**40, "TB": 10**12}
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([A-Za-z]{2,3})", text.strip(), re.ASCII)
    size = int(float(found[1]) * units.get(found[2], 0)) if found else 0
    if not size:
        raise RequestError(f"{option} must be a size such as 24GiB, got {text}.")
    return size


def _cell(text: str) -> str:
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def silence() -> None:
    """Keep the libraries' advice out of what a person watches; their warnings stay."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It advises on a kernel for prompts in 4 bits on CPUs, and falls back to its own.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for message in (
        ".*is_gradient_checkpointing.*",
        ".*LeafSpec.*",
        ".*does not have many workers.*",
        "Could not find a config file in",  # of a base in a folder, which PEFT looks for on the hub
    ):
        warnings.filterwarnings("ignore", message=message)
