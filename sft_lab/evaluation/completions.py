"""Completions of any model, read from a file, and the result of grading them."""

import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_lab.data.row_files import file_rows
from sft_lab.errors import RequestError
from sft_lab.evaluation.item import Item, Verdict

UNKNOWN = Verdict(None, "no problem has this task_id")
"""The verdict of a completion that belongs to no item."""

TEXT_KEYS = ("completion", "solution", "response")
"""Keys of a completion: the lab's own, EvalPlus's and IFEval's."""


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


def read_completions(path: str, task_ids: Iterable[str]) -> list[tuple[str, str]]:
    """Return the task id and the completion of every row.

    A task id may differ in case from the benchmark's, ``Mbpp/11``, or be its number alone, 11.

    Args:
        path: The file.
        task_ids: The benchmark's task ids.

    Raises:
        RequestError: If the file or a row is unusable.
    """
    known = list(task_ids)
    by_name = _by_unique({task_id: task_id.casefold() for task_id in known})
    by_number = _by_unique({task_id: task_id.rpartition("/")[2] for task_id in known})
    exact = dict(zip(known, known, strict=True))
    rows = []
    for place, row, _ in file_rows("--completions", Path(path)):
        where = f"--completions {path}, {place}"
        given = _task_id(row, where)
        found = exact.get(given) or by_name.get(given.casefold()) or by_number.get(given)
        rows.append((found or given, _text(row, where)))
    if not rows:
        raise RequestError(f"--completions {path} has no rows.")
    return rows


def _by_unique(names: Mapping[str, str]) -> dict[str, str]:
    """Return task ids by a name of theirs, if no other task id has the same."""
    counts = Counter(names.values())
    return {name: task_id for task_id, name in names.items() if counts[name] == 1}


def _task_id(row: Mapping[str, Any], where: str) -> str:
    value = row.get("task_id")
    if isinstance(value, float) and value.is_integer():  # a column with gaps
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        got = f"got {reprlib.repr(value)}" if "task_id" in row else "it is missing"
        raise RequestError(f"{where}: key 'task_id' must be a string or an integer; {got}.")
    return value


def _text(row: Mapping[str, Any], where: str) -> str:
    key = next((key for key in TEXT_KEYS if key in row), "completion")
    if not isinstance(row.get(key), str):
        got = f"got {reprlib.repr(row[key])}" if key in row else "it is missing"
        raise RequestError(f"{where}: key '{key}' must be a string; {got}.")
    text: str = row[key]
    return text
