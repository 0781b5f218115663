"""A source: one SFT data set on disk or the hub, its settings, and its rows as a stream."""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

from sft_lab.data.formats import FormatName, SourceFormat
from sft_lab.data.row_filters import RowFilter
from sft_lab.errors import RequestError
from sft_lab.paths import is_hub_name, resolve, settle_offline

_FILE_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """One SFT data set, and the choice of its rows to use.

    Args:
        path: A JSON, JSONL (also ``.gz``) or Parquet file, ``world://data/...``, or a hub name that
            ``datasets.load_dataset`` knows.
        format: The row format, by name or a ``SourceFormat`` by ``class_path``; by default
            detected from the keys of the first row.
        split: The split of a hub data set; files have none.
        subset: The configuration of a hub data set that has several, such as ``main`` of
            ``openai/gsm8k``.
        data_files: Which files of a hub data set to read; by default all.
        max_dropped: Largest share of rows that may be unusable, in [0, 1]; rows that are too long,
            or left out by the keys below, do not count.
        where: Expression over the keys of a row, true of those to use: ``correct == true``.
        include: Regular expressions; a row is used if one of them matches in its text.
        exclude: Regular expressions; a row is left out if one of them matches in its text.
        duplicates: ``drop`` keeps one of the rows of equal content.
        near_duplicates: Least overlap of word 5-grams (Jaccard), in (0, 1], at which rows count as
            near duplicates; one of them is kept, also of rows of equal content.
    """

    path: str
    format: FormatName | SourceFormat | None = None
    split: str = "train"
    subset: str | None = None
    data_files: str | None = None
    max_dropped: float = 0.1
    where: str | None = None
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    duplicates: Literal["keep", "drop"] = "keep"
    near_duplicates: float | None = None

    def row_filter(self, name: str) -> RowFilter:
        """Return the filter made of ``where``, ``include`` and ``exclude``.

        Raises:
            RequestError: If one of them is malformed.
        """
        try:
            return RowFilter(self.where, self.include, self.exclude)
        except ValueError as fault:
            raise RequestError(f"corpus.sources.{name}: {fault}") from fault


def check_source(name: str, source: Source) -> None:
    """Check a source's settings without reading it.

    Raises:
        RequestError: Naming the key, its value and the fix.
    """
    key = f"corpus.sources.{name}"
    if not 0 <= source.max_dropped <= 1:
        raise RequestError(f"{key}.max_dropped must lie in [0, 1], got {source.max_dropped}.")
    if source.near_duplicates is not None and not 0 < source.near_duplicates <= 1:
        raise RequestError(
            f"{key}.near_duplicates must lie in (0, 1], got {source.near_duplicates}; "
            "leave it out to keep near duplicates."
        )
    source.row_filter(name)


def content_digest(name: str, source: Source) -> str | None:
    """Return a SHA-256 of a source's files as hex; None if it has no files.

    Raises:
        RequestError: If the source does not exist.
    """
    key = f"corpus.sources.{name}.path"
    if (file := _local_file(key, source)) is not None:
        files = [file]
    else:
        cached = getattr(_hub_dataset(key, source), "cache_files", [])
        files = [Path(entry["filename"]) for entry in cached]
    digest = hashlib.sha256()
    try:
        for file in files:
            with open(file, "rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
    except OSError as fault:
        raise RequestError(f"{key}: {file} cannot be read: {fault}.") from fault
    return digest.hexdigest() if files else None


def rows(name: str, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with its place in the file, ``line n`` or ``row n``.

    JSONL, Parquet and hub data sets are streamed; a ``.json`` list is parsed as a whole.

    Raises:
        RequestError: If the source cannot be read, with the file and, if known, the line.
    """
    key = f"corpus.sources.{name}.path"
    file = _local_file(key, source)
    if file is None:
        for number, row in enumerate(_hub_dataset(key, source), start=1):
            yield f"row {number}", cast(Mapping[str, Any], row)
    elif file.suffix == ".parquet":
        yield from _parquet_rows(key, file)
    else:
        yield from _json_rows(key, file)


def _local_file(key: str, source: Source) -> Path | None:
    """Return a source's file, or None if its path is a hub name."""
    if not source.path:
        raise RequestError(f"{key} is empty; name a file or a hub name.")
    path = resolve(source.path)
    file = Path(path).expanduser()
    if os.path.isdir(file):
        raise RequestError(f"{key}: {path} is a folder; name a file in it.")
    if not os.path.isfile(file):  # unlike Path.is_file, false for a name that is too long
        if path.endswith(_FILE_ENDINGS) or not is_hub_name(path):
            raise RequestError(f"{key}: no such file: {path}.")
        return None
    if not path.endswith(_FILE_ENDINGS):
        raise RequestError(f"{key}: {path} ends in none of {', '.join(_FILE_ENDINGS)}.")
    return file


def _json_rows(key: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    is_list = file.name.removesuffix(".gz").endswith(".json")
    try:
        with cast(
            IO[bytes], gzip.open(file) if file.suffix == ".gz" else open(file, "rb")
        ) as opened:
            numbered = _listed(key, file, opened.read()) if is_list else _lines(key, file, opened)
            for place, row in numbered:
                if not isinstance(row, dict):
                    raise RequestError(
                        f"{key}: {file}, {place} holds {str(row)[:60]!r}, expected an object with "
                        "keys. Fix or remove it."
                    )
                yield place, row
    except (OSError, EOFError, zlib.error) as fault:
        raise RequestError(f"{key}: {file} cannot be read: {fault}.") from fault


def _lines(key: str, file: Path, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    # Bytes are split at \n only; text may hold other line separators, such as U+2028.
    for number, line in enumerate(stream, start=1):
        if line.strip(b"\xef\xbb\xbf \t\r\n"):
            yield f"line {number}", _parse(key, f"{file}, line {number}", line)


def _listed(key: str, file: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    if not content.strip(b"\xef\xbb\xbf \t\r\n"):
        return
    listed = _parse(key, str(file), content)
    if not isinstance(listed, list):
        raise RequestError(
            f"{key}: {file} holds one {type(listed).__name__}, expected a list of rows. "
            "If every line is a row, name it .jsonl."
        )
    for number, row in enumerate(listed, start=1):
        yield f"row {number}", row


def _parse(key: str, where: str, content: bytes) -> Any:
    try:
        # utf-8-sig: editors on Windows begin a file with a byte order mark.
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as fault:
        raise RequestError(
            f"{key}: {where} is not UTF-8 text: {fault.reason} at byte {fault.start + 1}. "
            "Save it as UTF-8, or remove the row."
        ) from fault
    except json.JSONDecodeError as fault:
        hint = " If every line is a row, name it .jsonl." if fault.msg == "Extra data" else ""
        raise RequestError(
            f"{key}: {where} is not JSON: {fault.msg} at character {fault.pos + 1}. "
            f"Fix or remove it.{hint}"
        ) from fault
    except (ValueError, RecursionError) as fault:  # a number of 5,000 digits; 100,000 brackets
        raise RequestError(f"{key}: {where} cannot be parsed as JSON: {fault}.") from fault


def _parquet_rows(key: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow.parquet  # half a second, needed for Parquet files only

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as fault:
        reason = str(fault).splitlines()[0]
        raise RequestError(f"{key}: {file} cannot be read as Parquet: {reason}") from fault


def _hub_dataset(key: str, source: Source) -> Any:
    settle_offline()
    import datasets  # a second, needed for hub names only

    try:
        return datasets.load_dataset(
            source.path, source.subset, data_files=source.data_files, split=source.split
        )
    except Exception as fault:  # load_dataset raises whatever its backends raise
        reason = str(fault).strip().split("\n")[0].rstrip(".")
        raise RequestError(
            f"{key}: {source.path} is not a local file, and not available from the hub: {reason}. "
            "Name a file, or go online."
        ) from fault
