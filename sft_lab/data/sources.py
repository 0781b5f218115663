"""A source: one SFT data set on disk or on the hub, read with every row accounted for."""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sft_lab.data.formats import FORMATS, Conversation, FormatName, RowError, detect, trainable
from sft_lab.data.hub import is_hub_name, settle_offline
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
        subset: The configuration of a hub data set that has several, such as ``main`` of
            ``openai/gsm8k``.
        data_files: The files of a hub data set to read, where it holds others beside them.
        max_dropped: The largest share of rows that may be unusable before it is an error, in
            [0, 1]; rows that are too long do not count.
    """

    path: str
    format: FormatName | None = None
    split: str = "train"
    subset: str | None = None
    data_files: str | None = None
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

    @property
    def total(self) -> int:
        """Rows of the source, usable or not."""
        return len(self.conversations) + sum(self.dropped.values())


def read_source(name: str, source: Source) -> SourceRows:
    """Read a source into conversations.

    Raises:
        RequestError: If it cannot be read, its format is unknown, or too many rows are unusable.
    """
    conversations: list[Conversation] = []
    dropped: Counter[str] = Counter()
    row_format: str | None = source.format
    first_fault = ""
    for where, row in _rows(f"corpus.sources.{name}.path", source):
        row_format = row_format or detect(row)
        if row_format is None:
            raise RequestError(
                f"corpus.sources.{name}: {where} has the keys {', '.join(sorted(row))}, which fit "
                f"no known format; set corpus.sources.{name}.format, one of {', '.join(FORMATS)}."
            )
        try:
            conversations.append(trainable(FORMATS[row_format][1](row)))
        except RowError as fault:
            dropped[str(fault)] += 1
            first_fault = first_fault or f"{where}: {fault}"
    read = SourceRows(conversations, dict(dropped))
    if not read.total:
        raise RequestError(f"corpus.sources.{name}.path: {source.path} holds no rows.")
    check_dropped(name, source, dropped.total(), read.total, first_fault)
    return read


def check_dropped(name: str, source: Source, dropped: int, total: int, example: str) -> None:
    """Refuse a source of which too many rows cannot be used.

    Raises:
        RequestError: Naming the limit and an example.
    """
    if dropped > source.max_dropped * total:
        raise RequestError(
            f"corpus.sources.{name}: {dropped} of {total} rows cannot be used, e.g. {example}. "
            f"Mend them, or raise corpus.sources.{name}.max_dropped from {source.max_dropped}."
        )


def sample_digest(conversation: Conversation) -> str:
    """Return the SHA-256 of a conversation's content as hex, the same on every machine."""
    content = json.dumps([[m["role"], m["content"]] for m in conversation], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _rows(key: str, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with where it stands, as "file, line n" or "file, row n"."""
    path = resolve(source.path)
    file = Path(path)
    if file.is_dir():
        raise RequestError(f"{key}: {path} is a folder; name a file in it.")
    if not file.is_file():
        if path.endswith(_FILE_ENDINGS) or not is_hub_name(path):
            raise RequestError(f"{key}: there is no file {path}.")
        yield from _hub_rows(key, source)
    elif path.endswith(".parquet"):
        yield from _parquet_rows(key, file)
    elif path.endswith(_FILE_ENDINGS):
        yield from _json_rows(key, file)
    else:
        raise RequestError(f"{key}: {path} ends in none of {', '.join(_FILE_ENDINGS)}.")


def _json_rows(key: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        # utf-8-sig: editors on Windows begin a file with a byte order mark.
        with opened(file, "rt", encoding="utf-8-sig") as stream:
            content = stream.read()
    except UnicodeDecodeError as fault:
        raise RequestError(f"{key}: {file} is not UTF-8 text: {fault.reason}.") from fault
    except (OSError, EOFError, zlib.error) as fault:
        raise RequestError(f"{key}: {file} cannot be read: {fault}.") from fault
    if not content.strip():
        return
    if file.name.removesuffix(".gz").endswith(".json"):
        rows = _parse(key, f"{file}", content)
        if not isinstance(rows, list):
            raise RequestError(
                f"{key}: {file} holds one {type(rows).__name__}, expected a list of rows. "
                "If every line is a row, name it .jsonl."
            )
        numbered = ((f"{file}, row {n}", row) for n, row in enumerate(rows, start=1))
    else:
        # Not splitlines(): text may hold other line separators, such as U+2028.
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
    except (json.JSONDecodeError, RecursionError) as fault:
        raise RequestError(f"{key}: {where} is not JSON: {fault}.") from fault


def _parquet_rows(key: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow.parquet  # half a second, needed for Parquet files only

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as fault:
        reason = str(fault).splitlines()[0]
        raise RequestError(f"{key}: {file} cannot be read as Parquet: {reason}") from fault
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{file}, row {number}", row


def _hub_rows(key: str, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    settle_offline()
    import datasets  # a second, needed for hub names only

    try:
        rows = datasets.load_dataset(
            source.path, source.subset, data_files=source.data_files, split=source.split
        )
    except Exception as fault:  # load_dataset raises whatever its backends raise
        reason = str(fault).strip().split("\n")[0].rstrip(".")
        raise RequestError(
            f"{key}: {source.path} is no local file, and could not be had from the hub: {reason}. "
            "Name a file, or go online."
        ) from fault
    for number, row in enumerate(rows, start=1):
        yield f"{source.path}[{source.split}], row {number}", cast(Mapping[str, Any], row)
