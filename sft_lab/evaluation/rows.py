"""Rows of JSONL (plain or compressed) and Parquet files, with errors that name the place."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from sft_lab.errors import RequestError

_BLANK = b"\xef\xbb\xbf \t\r\n"  # also a byte order mark, with which Windows begins a file


def read_rows(path: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each row of a JSONL (also ``.gz``) or Parquet file with its place, such as ``line 3``.

    Raises:
        RequestError: If the file or a row cannot be read; the message begins with ``name``.
    """
    if path.endswith(".parquet"):
        yield from _parquet_rows(path, name)
    else:
        yield from _json_lines(path, name)


def _json_lines(path: str, name: str) -> Iterator[tuple[str, Any]]:
    try:
        with cast(
            IO[bytes], gzip.open(path) if path.endswith(".gz") else open(path, "rb")
        ) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip(_BLANK):
                    continue
                place = f"line {number}"
                try:
                    yield place, json.loads(line.decode("utf-8-sig"))
                except json.JSONDecodeError as error:
                    raise RequestError(
                        f"{name}, {place}: not JSON at column {error.colno}: {error.msg}."
                    ) from error
                except UnicodeDecodeError as error:
                    raise RequestError(
                        f"{name}, {place}: {error.reason}; it must be UTF-8 text."
                    ) from error
                except (ValueError, RecursionError) as error:  # 5,000 digits; 100,000 brackets
                    raise RequestError(f"{name}, {place}: unreadable JSON: {error}.") from error
    except (EOFError, zlib.error) as error:
        raise RequestError(f"{name}: {error}; the file is damaged, fetch it again.") from error
    except OSError as error:
        reason = error.strerror or error
        raise RequestError(f"{name}: {reason}; it must be a readable JSONL file.") from error


def _parquet_rows(path: str, name: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{name}: {reason}; it must be a readable Parquet file.") from error
