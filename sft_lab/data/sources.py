"""A source: one SFT data set on disk or on the hub, read into conversations with every row accounted for."""

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_lab.data.formats import FORMATS, Conversation, FormatName, RowError, detect, trainable
from sft_lab.errors import RequestError
from sft_lab.paths import resolve

_FILE_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Source:
    """Where the rows of one source come from.

    Args:
        path: A JSON, JSONL (also ``.gz``) or Parquet file, ``world://data/...``, or a hub name that
            ``datasets.load_dataset`` knows.
        format: The row format; by default each file's is told from the keys of its first row.
        split: The split of a hub data set; files have none.
        max_dropped: The largest share of rows that may be unusable before it is an error, in [0, 1].
    """

    path: str
    format: FormatName | None = None
    split: str = "train"
    max_dropped: float = 0.1


@dataclass(frozen=True)
class SourceRows:
    """The usable rows of a source and what became of the others.

    Attributes:
        conversations: One per usable row, in file order.
        dropped: Rows left out, by reason.
    """

    conversations: list[Conversation]
    dropped: Mapping[str, int]


def read_source(name: str, source: Source) -> SourceRows:
    """Read a source into conversations.

    Raises:
        RequestError: If it cannot be read, a row's format is unknown, or too many rows are unusable.
    """
    path = resolve(source.path)
    conversations: list[Conversation] = []
    dropped: Counter[str] = Counter()
    row_format = source.format
    first_fault = ""
    total = 0
    for total, (where, row) in enumerate(_rows(name, path, source.split), start=1):
        row_format = row_format or detect(row)
        if row_format is None:
            raise RequestError(
                f"corpus.sources.{name}: {where} has the keys {sorted(row)}, which fit no known format; "
                f"set corpus.sources.{name}.format to one of {', '.join(FORMATS)}."
            )
        try:
            conversations.append(trainable(FORMATS[row_format][1](row)))
        except RowError as fault:
            dropped[str(fault)] += 1
            first_fault = first_fault or f"{where}: {fault}"
    if not total:
        raise RequestError(f"corpus.sources.{name}.path: {source.path} holds no rows.")
    num_dropped = sum(dropped.values())
    if num_dropped > source.max_dropped * total:
        raise RequestError(
            f"corpus.sources.{name}: {num_dropped} of {total} rows cannot be used, the first at {first_fault}. "
            f"Mend them, or allow it with corpus.sources.{name}.max_dropped."
        )
    return SourceRows(conversations, dict(dropped))


def sample_digest(conversation: Conversation) -> str:
    """Return the SHA-256 of a conversation's content as hex: a sample's identity on every machine."""
    content = json.dumps([[m["role"], m["content"]] for m in conversation], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _rows(name: str, path: str, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with where it stands, as "file, line n" or "file, row n"."""
    key = f"corpus.sources.{name}.path"
    file = Path(path)
    if file.is_dir():
        raise RequestError(f"{key}: {path} is a folder; name a file in it.")
    if not file.is_file():
        if path.endswith(_FILE_ENDINGS) or file.is_absolute():
            raise RequestError(f"{key}: there is no file {path}.")
        yield from _hub_rows(key, path, split)
    elif path.endswith(".parquet"):
        yield from _parquet_rows(file)
    elif path.endswith(_FILE_ENDINGS):
        yield from _json_rows(key, file)
    else:
        raise RequestError(f"{key}: {path} ends in none of {', '.join(_FILE_ENDINGS)}.")


def _json_rows(key: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8") as stream:
            content = stream.read()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as fault:
        raise RequestError(f"{key}: {file} cannot be read as UTF-8 text: {fault}.") from fault
    if file.name.removesuffix(".gz").endswith(".json"):
        rows = _parse(key, f"{file}", content)
        if not isinstance(rows, list):
            raise RequestError(
                f"{key}: {file} holds one {type(rows).__name__}, expected a list of rows."
            )
        numbered = ((f"{file}, row {n}", row) for n, row in enumerate(rows, start=1))
    else:
        numbered = (
            (f"{file}, line {n}", _parse(key, f"{file}, line {n}", line))
            for n, line in enumerate(content.split("\n"), start=1)
            if line.strip()
        )
    for where, row in numbered:
        if not isinstance(row, dict):
            raise RequestError(
                f"{key}: {where} holds {str(row)[:60]!r}, expected an object with keys."
            )
        yield where, row


def _parse(key: str, where: str, content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as fault:
        raise RequestError(f"{key}: {where} is not JSON: {fault}.") from fault


def _parquet_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow.parquet  # noqa: PLC0415 - only read where a Parquet file is named

    for number, row in enumerate(pyarrow.parquet.read_table(file).to_pylist(), start=1):
        yield f"{file}, row {number}", row


def _hub_rows(key: str, path: str, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets  # noqa: PLC0415 - a second to import, needed for hub names only

    try:
        rows = datasets.load_dataset(path, split=split)
    except Exception as fault:  # load_dataset raises whatever its backends raise
        raise RequestError(
            f"{key}: {path} is no local file, and load_dataset could not fetch it ({type(fault).__name__}). "
            "Name a file, or go online."
        ) from fault
    for number, row in enumerate(rows, start=1):
        yield f"{path}[{split}], row {number}", row
