"""Tokenised rows on disk: a memory-mapped Arrow file, so that a source may exceed memory."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from sft_lab.data.tokenized_row import TokenizedRow

_SCHEMA = pa.schema(
    {
        "sample_id": pa.string(),
        "input_ids": pa.large_list(pa.int32()),
        "spans": pa.list_(pa.int32()),  # start, end, start, end, ... of the trained tokens
        "cut": pa.bool_(),
        "num_target_tokens": pa.int32(),
        "largest_id": pa.int32(),
    }
)


class TokenWriter:
    """Write tokenised rows to an Arrow file, a batch at a time.

    Args:
        path: The file; an existing one is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(path, _SCHEMA)

    def add(self, sample_ids: Sequence[str], rows: Sequence[TokenizedRow]) -> None:
        """Append one or more rows."""
        input_ids = [np.asarray(row.input_ids, dtype=np.int32) for row in rows]
        columns = [
            list(sample_ids),
            input_ids,
            [list(chain.from_iterable(row.spans)) for row in rows],
            [row.cut for row in rows],
            [row.num_target_tokens for row in rows],
            [ids.max(initial=0) for ids in input_ids],
        ]
        arrays = [
            pa.array(column, type=kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=_SCHEMA))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()


class TokenStore(Sequence[TokenizedRow]):
    """The rows of an Arrow file, each read on access.

    Args:
        path: A file that ``TokenWriter`` has closed.

    Attributes:
        num_tokens: Tokens of each row, int64 ``[N]``.
        num_target_tokens: Tokens of each row that carry loss, int32 ``[N]``.
        largest_id: The largest token id of all rows; 0 if there are none.
    """

    def __init__(self, path: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._ids = [_lists(chunk) for chunk in table["input_ids"].chunks]
        self._spans = [_lists(chunk) for chunk in table["spans"].chunks]
        self._starts = list(accumulate((len(o) - 1 for o, _ in self._ids), initial=0))
        self._cut = table["cut"]
        self._sample_ids = table["sample_id"]
        lengths = [np.diff(offsets) for offsets, _ in self._ids]
        self.num_tokens: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *lengths])
        self.num_target_tokens: NDArray[np.int32] = _numbers(
            table["num_target_tokens"].combine_chunks()
        )
        self.largest_id = int(_numbers(table["largest_id"].combine_chunks()).max(initial=0))

    @cached_property
    def sample_ids(self) -> list[str]:
        """Return the SHA-256 of each row's content as hex."""
        ids: list[str] = self._sample_ids.to_pylist()
        return ids

    @override
    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> TokenizedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedRow]: ...
    @override
    def __getitem__(self, index: int | slice) -> TokenizedRow | list[TokenizedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        chunk = bisect_right(self._starts, index) - 1
        place = index - self._starts[chunk]
        spans = _item(self._spans[chunk], place).tolist()
        return TokenizedRow(
            cast(Sequence[int], _item(self._ids[chunk], place)),
            tuple(zip(spans[::2], spans[1::2], strict=True)),
            cut=self._cut[index].as_py(),
        )


def _lists(chunk: Any) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return offsets and values of an Arrow array of lists, as views of the mapped file."""
    return _numbers(chunk.offsets), _numbers(chunk.values)


def _numbers(array: Any) -> NDArray[Any]:
    """Return an Arrow array of numbers as a view; its own ``to_numpy`` would import pandas."""
    return np.from_dlpack(array)


def _item(lists: tuple[NDArray[Any], NDArray[np.int32]], place: int) -> NDArray[np.int32]:
    offsets, values = lists
    return values[offsets[place] : offsets[place + 1]]
