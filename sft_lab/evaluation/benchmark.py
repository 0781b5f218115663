"""What every benchmark is: items read from a JSONL file, a prompt each, and a scorer."""

import hashlib
import json
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sft_lab.errors import RequestError
from sft_lab.paths import resolve


@dataclass(frozen=True)
class Item:
    """One problem: a conversation that ends with the user's turn, and the row it came from."""

    id: str
    messages: tuple[dict[str, str], ...]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One graded completion: ``answer`` is what was read from it, or why it failed."""

    correct: bool
    answer: str


class Benchmark(ABC):
    """Items with a scorer; a new benchmark is a subclass that names its fields and grades answers.

    A line is a JSON object, ``{"id": "m1", "messages": [{"role": "user", "content": "2 + 2?"}]}``,
    with the ``row_fields`` of the benchmark beside them.

    Args:
        path: JSONL file, or ``world://`` name of a packaged one; read on the first use, not here.
        max_new_tokens: Longest completion, in tokens.
        source: The SFT source that teaches this ability, from which backward transfer counts.
        num_examples: Use only so many rows, spread evenly over the file; all when not given.

    Raises:
        RequestError: If an argument is out of range.
    """

    score_name: ClassVar[str]
    row_fields: ClassVar[Mapping[str, type]] = {}

    def __init__(
        self,
        path: str,
        max_new_tokens: int,
        source: str | None = None,
        num_examples: int | None = None,
    ) -> None:
        if not path:
            raise RequestError("path must name the benchmark's JSONL file, got ''.")
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
        if source == "":
            raise RequestError("source must be the name of an SFT source or null, got ''.")
        if num_examples is not None and num_examples < 1:
            raise RequestError(
                f"num_examples must be 1 or more, got {num_examples}. Leave it out to use all rows."
            )
        self.path = path
        self.max_new_tokens = max_new_tokens
        self.source = source
        self.num_examples = num_examples
        self._items: list[Item] | None = None

    @abstractmethod
    def score(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        """Grade one completion per item, in order."""

    def texts(self, item: Item) -> list[str]:
        """Return the texts of an item that no training row should hold; by default its prompt."""
        return [message["content"] for message in item.messages]

    def protocol(self) -> dict[str, Any]:
        """Return what decides a score besides the items; a subclass adds its own settings."""
        return {
            "benchmark": type(self).__name__,
            "score": self.score_name,
            "max_new_tokens": self.max_new_tokens,
        }

    def digest(self) -> str:
        """Return the sha256 of protocol and items: scores compare only where it is equal."""
        document = {"protocol": self.protocol(), "items": [dict(item.row) for item in self.items()]}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def items(self) -> list[Item]:
        """Return the problems in file order; the file is read once.

        Raises:
            RequestError: If the file or a row is unusable; names the file, the line and the key.
        """
        if self._items is None:
            self._items = self._chosen(list(self._read()))
        return list(self._items)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check the benchmark's own fields of one row.

        Raises:
            ValueError: If one is missing or wrong; the caller adds file and line.
        """
        for key, kind in self.row_fields.items():
            if key not in row:
                raise ValueError(f"key '{key}' is missing; {type(self).__name__} rows need it.")
            if not isinstance(row[key], kind):
                raise ValueError(f"key '{key}' must be {_json_name(kind)}, {_got(row[key])}.")

    def _read(self) -> Iterator[Item]:
        first_line: dict[str, int] = {}
        try:
            with open(resolve(self.path), encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        item = self._parse(line)
                        if item.id in first_line:
                            raise ValueError(
                                f"id '{item.id}' stands on line {first_line[item.id]} already; "
                                "give every row its own."
                            )
                    except ValueError as error:
                        raise RequestError(f"{self.path}, line {number}: {error}") from error
                    first_line[item.id] = number
                    yield item
        except OSError as error:
            raise RequestError(
                f"{self.path}: {error.strerror}; path must be a readable JSONL file."
            ) from error
        except UnicodeDecodeError as error:
            raise RequestError(f"{self.path}: {error.reason}; path must be UTF-8 text.") from error

    def _parse(self, line: str) -> Item:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON at column {error.colno}: {error.msg}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"a row must be an object, {_got(row)}.")
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
        self.check_row(row)
        return Item(id=row["id"], messages=tuple(messages), row=row)

    def _chosen(self, items: list[Item]) -> list[Item]:
        if not items:
            raise RequestError(f"{self.path} has no rows; a benchmark needs at least one.")
        if self.num_examples is None:
            return items
        if self.num_examples > len(items):
            raise RequestError(
                f"num_examples is {self.num_examples}, but {self.path} has {len(items)} rows. "
                "Leave it out to use all."
            )
        # Files are often sorted by kind: the first rows would stand for one kind only.
        return [items[i * len(items) // self.num_examples] for i in range(self.num_examples)]


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _json_name(kind: type) -> str:
    return "a string" if kind is str else "an object" if kind is Mapping else kind.__name__


def _got(value: object) -> str:
    return f"got {reprlib.repr(value)}"
