"""Rows of Arrow tables: Parquet files and hub data sets, without the nulls that Arrow fills in."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_lab.errors import RequestError

_BATCH_ROWS = 1024  # decoded at once
_BATCH_BYTES = 64 * 2**20  # and no more than these, if rows are as long as the first ones
_FIRST_ROWS = 4

Content = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def parquet_rows(key: str, file: Path) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield each row of a Parquet file as it is, and without the nulls of its structs.

    Raises:
        RequestError: If the file cannot be read.
    """
    import pyarrow.parquet  # half a second, needed for Parquet files only

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            content = without_struct_nulls(parquet.schema_arrow)
            for batch in parquet.iter_batches(_batch_rows(parquet)):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    yield row, content(row)
    except (OSError, UnicodeDecodeError, KeyError, pyarrow.ArrowException) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise RequestError(f"{key}: {file} cannot be read as Parquet: {reason}") from fault


def _batch_rows(parquet: Any) -> int:
    """Return how many rows of a file to decode at once."""
    first = next(parquet.iter_batches(_FIRST_ROWS), None)
    if first is None or not first.nbytes:
        return _BATCH_ROWS
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * first.num_rows // first.nbytes))


def without_struct_nulls(schema: Any) -> Content:
    """Return a function that removes the nulls of structs from the rows of a table.

    The objects of a column share one struct type, so that one without a key has it as null. Nulls
    of whole columns, lists and maps, and those inside JSON strings, were written by somebody.
    """
    cleaners = {name: _cleaner(schema.field(name).type) for name in schema.names}
    found = {name: cleaner for name, cleaner in cleaners.items() if cleaner is not None}
    if not found:
        return lambda row: row
    return lambda row: {
        key: found[key](value) if key in found else value for key, value in row.items()
    }


def _cleaner(kind: Any) -> Callable[[Any], Any] | None:
    """Return a function that removes the nulls of structs in values of a type, if it has any."""
    from pyarrow import types

    if types.is_struct(kind):
        fields = {field.name: _cleaner(field.type) for field in kind}
        return lambda value: _struct(value, fields)
    if types.is_map(kind):
        item = _cleaner(kind.item_type)
        return None if item is None else lambda value: _map(value, item)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _cleaner(kind.value_type)
        return None if inner is None else lambda value: _list(value, inner)
    return None


def _struct(value: Any, fields: Mapping[str, Callable[[Any], Any] | None]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        key: inner if (cleaner := fields.get(key)) is None else cleaner(inner)
        for key, inner in value.items()
        if inner is not None
    }


def _map(value: Any, inner: Callable[[Any], Any]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: inner(item) for key, item in value.items()}


def _list(value: Any, inner: Callable[[Any], Any]) -> Any:
    return [inner(item) for item in value] if isinstance(value, list) else value
