"""Completions of any model, read from a file, and the result of grading them."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sft_lab.errors import RequestError
from sft_lab.evaluation.item import Item, Verdict
from sft_lab.evaluation.json_lines import json_lines

UNKNOWN = Verdict(None, "no problem has this task_id")
"""The verdict of a completion that belongs to no item."""


@dataclass(frozen=True)
class GradedFile:
    """A graded file.

    Attributes:
        rows: Task id, item and verdict of every row, in file order; the item is None if unknown.
        tasks: All tasks that the file could have answered.
        details: Facts for the report, such as the level of the sandbox.
    """

    rows: Sequence[tuple[str, Item | None, Verdict]]
    tasks: Sequence[str]
    details: Mapping[str, str | int] = field(default_factory=dict)


def read_completions(path: str) -> list[tuple[str, str]]:
    """Return the task id and the completion of every row.

    Raises:
        RequestError: If the file or a row is unusable.
    """
    rows = []
    for line, row in json_lines(path, f"--completions {path}"):
        where = f"--completions {path}, line {line}"
        if not isinstance(row, dict):
            raise RequestError(f"{where}: a row must be an object, got {reprlib.repr(row)}.")
        for key in ("task_id", "completion"):
            if not isinstance(row.get(key), str):
                got = f"got {reprlib.repr(row[key])}" if key in row else "it is missing"
                raise RequestError(f"{where}: key '{key}' must be a string; {got}.")
        rows.append((row["task_id"], row["completion"]))
    if not rows:
        raise RequestError(f"--completions {path} has no rows.")
    return rows
