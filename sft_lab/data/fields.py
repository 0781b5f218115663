"""The keys of a row or a turn, and which of them its format has read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import override


class Fields(Mapping[str, Any]):
    """A row or turn that remembers which of its keys were read.

    Args:
        values: The row or turn.
        prefix: Put before the names of its keys, such as ``messages[].``.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self._read: set[str] = set()
        self._turns: list[Fields] = []

    def turns(self, key: str, turns: Sequence[Mapping[str, Any]]) -> list["Fields"]:
        """Return the turns under a key, whose own keys count as this row's."""
        found = [Fields(turn, f"{self._prefix}{key}[].") for turn in turns]
        self._turns += found
        return found

    @property
    def unread(self) -> set[str]:
        """Return the keys that hold something and were never read, those of turns included."""
        unread = {
            self._prefix + key
            for key, value in self._values.items()
            if key not in self._read and value is not None and value not in ("", [], {})
        }
        return unread.union(*(turn.unread for turn in self._turns))

    @override
    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._values[key]

    @override
    def __contains__(self, key: object) -> bool:  # asking is not reading
        return key in self._values

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    @override
    def __len__(self) -> int:
        return len(self._values)
