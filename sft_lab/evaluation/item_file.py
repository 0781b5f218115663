"""Items read from a benchmark's own file, or from the hub."""

import json
import reprlib
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from sft_lab.data.row_files import RowFiles
from sft_lab.errors import RequestError
from sft_lab.evaluation.item import Item
from sft_lab.paths import is_hub_name
from sft_lab.terminal import counted

_EXAMPLES: Mapping[type, Any] = {str: "...", list: ["..."], Mapping: {}}


class ItemFile(ABC):  # noqa: B024 - what to do with the items is up to the subclass
    """The items of a file or of a data set on the hub, read on the first use.

    A row is an object, ``{"id": "m1", "messages": [{"role": "user", "content": "2 + 2?"}]}``, plus
    the ``row_fields`` of the subclass; one for rows of another form overrides ``item``.

    Args:
        path: JSON, JSONL (also ``.gz``) or Parquet file, ``world://`` name of a packaged one, or a
            hub name, such as the benchmark's own, ``published``.
        num_examples: Use only this many rows, spread evenly over the file; all by default.
        split: Split of a hub data set; by default the one that the benchmark is published for.
        subset: Configuration of a hub data set; by default the published one.
        data_files: Which files of a hub data set to read; by default all of the split.
        revision: Branch, tag or commit of a hub data set; by default the main branch.

    Raises:
        RequestError: If an argument is out of range.
    """

    row_fields: ClassVar[Mapping[str, type]] = {}

    right_row: ClassVar[Mapping[str, Any] | None] = None
    """A row as it should be, for errors; by default one with the types of ``row_fields``."""

    cluster_field: ClassVar[str | None] = None
    """The key of a row under which problems that are not independent have the same value."""

    published: ClassVar[str | None] = None
    """The hub name of the published items, or the packaged file that holds them."""

    hub_split: ClassVar[str] = "train"
    """The split of the published items; ``a+b`` joins two."""

    hub_subset: ClassVar[str | None] = None
    """The configuration of the hub data set that holds them."""

    local_file: ClassVar[str] = "a JSON, JSONL or Parquet file of its rows"
    """A file that holds the same rows, for errors."""

    commit: str | None = None
    """The commit of a hub data set; known once the items are read."""

    key: str = "the benchmark's "
    """The beginning of the config keys of ``path`` and the others, for errors."""

    def __init__(
        self,
        path: str,
        num_examples: int | None = None,
        split: str | None = None,
        subset: str | None = None,
        data_files: str | None = None,
        revision: str | None = None,
    ) -> None:
        if not path:
            raise RequestError("path must name the benchmark's file or hub name, got ''.")
        if num_examples is not None and num_examples < 1:
            raise RequestError(
                f"num_examples must be 1 or more, got {num_examples}. Leave it out to use all rows."
            )
        self.path = path
        self.num_examples = num_examples
        self.split = split
        self.subset = subset
        self.data_files = data_files
        self.revision = revision
        self._all_items: list[Item] | None = None
        self._items: list[Item] | None = None

    def items(self) -> list[Item]:
        """Return the items to measure, in file order; the file is read once.

        Raises:
            RequestError: If the file or a row is unusable; names the file, the line and the key.
        """
        if self._items is None:
            self._items = self._chosen(self.all_items())
        return list(self._items)

    def all_items(self) -> list[Item]:
        """Return all items of the file; ``items`` returns the ones that are measured."""
        if self._all_items is None:
            self._all_items = list(self._read())
        return list(self._all_items)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check the benchmark's own fields of one row.

        Raises:
            ValueError: If one is missing or wrong; the caller adds file and line.
        """
        base = ("id", "messages") if type(self).item is ItemFile.item else ()
        if missing := [repr(key) for key in (*base, *self.row_fields) if key not in row]:
            are = "key {} is" if len(missing) == 1 else "keys {} are"
            raise ValueError(
                f"{are.format(', '.join(missing))} missing; a row of {type(self).__name__} is "
                f"{json.dumps(self._right_row(), ensure_ascii=False)}."
            )
        for key, kind in self.row_fields.items():
            if not isinstance(row[key], kind) or (kind is int and isinstance(row[key], bool)):
                raise ValueError(f"key '{key}' must be {_json_name(kind)}, {_got(row[key])}.")

    def _right_row(self) -> Mapping[str, Any]:
        if self.right_row is not None:
            return self.right_row
        made: dict[str, Any] = {"id": "m1", "messages": [{"role": "user", "content": "2 + 2?"}]}
        return made | {key: _EXAMPLES.get(kind, 1) for key, kind in self.row_fields.items()}

    def item(self, row: Mapping[str, Any], number: int) -> Item:
        """Build an item from a row.

        Args:
            row: An object of the file.
            number: Number of rows before it.

        Raises:
            ValueError: If a key is missing or wrong; the caller adds file and line.
        """
        if not isinstance(row.get("id"), str) or not row["id"]:
            raise ValueError(f"key 'id' must be a non-empty string, {_got(row.get('id'))}.")
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise ValueError(
                "key 'messages' must be a list of {'role': string, 'content': string}, "
                f"{_got(messages)}."
            )
        if messages[-1]["role"] != "user":
            raise ValueError(
                f"key 'messages' must end with the user's turn, got role '{messages[-1]['role']}'."
            )
        return Item(id=row["id"], messages=tuple(messages), row=row)

    def row_files(self) -> RowFiles:
        """Return the place of the rows."""
        is_hub = is_hub_name(self.path)
        return RowFiles(
            f"{self.key}path",
            self.path,
            split=self.split or (self.hub_split if is_hub else "train"),
            subset=self.subset or (self.hub_subset if is_hub else None),
            data_files=self.data_files,
            revision=self.revision,
            instead=self.local_file,
        )

    def _read(self) -> Iterator[Item]:
        first: dict[str, str] = {}
        files = self.row_files()
        self.commit = files.commit()
        for number, (place, _, row) in enumerate(files.rows()):
            try:
                self.check_row(row)
                item = self.item(row, number)
                if item.id in first:
                    raise ValueError(
                        f"id '{item.id}' is already on {first[item.id]}; give every row its own."
                    )
            except ValueError as error:
                raise RequestError(f"{self.path}, {place}: {error}") from error
            first[item.id] = place
            cluster = row.get(self.cluster_field) if self.cluster_field else None
            yield item if cluster is None else replace(item, cluster=str(cluster))

    def _chosen(self, items: list[Item]) -> list[Item]:
        if not items:
            raise RequestError(f"{self.path} has no rows; a benchmark needs at least one.")
        if self.num_examples is None:
            return items
        if self.num_examples > len(items):
            raise RequestError(
                f"num_examples is {self.num_examples}, but {self.path} has "
                f"{counted(len(items), 'row')}. Leave it out to use all."
            )
        # Files are often sorted by kind: the first rows would all be of one kind.
        return [items[i * len(items) // self.num_examples] for i in range(self.num_examples)]


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _json_name(kind: type) -> str:
    return "a string" if kind is str else "an object" if kind is Mapping else kind.__name__


def _got(value: object) -> str:
    return f"got {reprlib.repr(value)}"
