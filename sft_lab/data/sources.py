"""A source: one SFT data set on disk or the hub, its settings, and its rows as a stream."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from sft_lab.config.ranges import PositiveShare, UnitInterval
from sft_lab.data.arrow_rows import parquet_rows, without_struct_nulls
from sft_lab.data.formats import FormatName, SourceFormat
from sft_lab.data.json_rows import json_rows
from sft_lab.data.row_filters import RowFilter
from sft_lab.errors import RequestError
from sft_lab.paths import is_hub_name, resolve, settle_offline

_FILE_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
_BLOCK_BYTES = 1 << 20
_LFS_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"(?P<name>.*)-(?P<number>\d+)-of-(?P<count>\d+)(?P<ending>\..*)")


@dataclass(frozen=True)
class Source:
    """One SFT data set, and the choice of its rows to use.

    Args:
        path: A JSON, JSONL (also ``.gz``) or Parquet file, a folder or pattern (``rows/*.parquet``)
            of such files, ``world://data/...``, or a hub name that ``datasets.load_dataset`` knows.
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
    max_dropped: UnitInterval = 0.1
    where: str | None = None
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    duplicates: Literal["keep", "drop"] = "keep"
    near_duplicates: PositiveShare | None = None

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
    source.row_filter(name)


class RawRow(NamedTuple):
    """A row as its file holds it.

    Attributes:
        place: Its place, ``line n`` or ``row n``, after the file's name if there are several.
        values: Its keys and values.
        content: The same without the nulls that Arrow fills into objects.
    """

    place: str
    values: Mapping[str, Any]
    content: Mapping[str, Any]


def content_digest(name: str, source: Source) -> str | None:
    """Return a SHA-256 of a source's files as hex; None if it has no files.

    Raises:
        RequestError: If the source does not exist.
    """
    key = f"corpus.sources.{name}"
    if (files := source_files(name, source)) is None:
        cached = getattr(_hub_dataset(key, source), "cache_files", [])
        files = [Path(entry["filename"]) for entry in cached]
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
        except OSError as fault:
            raise RequestError(f"{key}.path: {file} cannot be read: {fault}.") from fault
    return digest.hexdigest() if files else None


def rows(name: str, source: Source) -> Iterator[RawRow]:
    """Yield the rows of a source in order.

    JSONL, Parquet and hub data sets are streamed; a ``.json`` list is parsed as a whole.

    Raises:
        RequestError: If the source cannot be read, with the file and, if known, the line.
    """
    key = f"corpus.sources.{name}.path"
    files = source_files(name, source)
    if files is None:
        yield from _hub_rows(f"corpus.sources.{name}", source)
        return
    for file in files:
        prefix = f"{file.name}, " if len(files) > 1 else ""
        if file.suffix == ".parquet":
            for number, (values, content) in enumerate(parquet_rows(key, file), start=1):
                yield RawRow(f"{prefix}row {number}", values, content)
        else:
            for place, row in json_rows(key, file):
                yield RawRow(prefix + place, row, row)


def source_files(name: str, source: Source) -> list[Path] | None:
    """Return a source's files by name, or None if its path is a hub name.

    Raises:
        RequestError: If there are none, they do not belong together, or settings are for the hub.
    """
    key = f"corpus.sources.{name}"
    if not source.path:
        raise RequestError(f"{key}.path is empty; name a file or a hub name.")
    path = resolve(source.path)
    place = Path(path).expanduser()
    if os.path.isdir(place):
        files = _folder_files(f"{key}.path", place)
    elif os.path.isfile(place):  # unlike Path.is_file, false for a name that is too long
        if not path.endswith(_FILE_ENDINGS):
            raise RequestError(f"{key}.path: {path} ends in none of {', '.join(_FILE_ENDINGS)}.")
        files = [place]
    elif glob.has_magic(path):
        files = _usable(Path(found) for found in glob.glob(str(place), recursive=True))
        if not files:
            raise RequestError(
                f"{key}.path: no file that ends in {', '.join(_FILE_ENDINGS)} matches {path}."
            )
    elif path.endswith(_FILE_ENDINGS) or not is_hub_name(path):
        raise RequestError(f"{key}.path: no such file: {path}.")
    else:
        return None
    choices: dict[str, str | None] = {"split": "train"}
    if files != [place]:  # one file is chosen by its path, whatever it stands in for
        choices |= {"subset": None, "data_files": None}
    for file in files:
        _check_not_pointer(f"{key}.path", file)
    for setting, default in choices.items():
        if (value := getattr(source, setting)) != default:
            raise RequestError(
                f"{key}.{setting}: files have none, got {value!r} for {path}; leave it out, and "
                f"name the files of one split in {key}.path."
            )
    return files


def _folder_files(key: str, folder: Path) -> list[Path]:
    """Return the files of a folder, which must be one file or the shards of one."""
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        raise RequestError(
            f"{key}: {folder} was written by save_to_disk of datasets; write it as Parquet: "
            f"datasets.load_from_disk({str(folder)!r}).to_parquet('rows.parquet')."
        )
    files = _usable(folder.iterdir())
    if not files:
        raise RequestError(
            f"{key}: {folder} is a folder without files that end in {', '.join(_FILE_ENDINGS)}."
        )
    shards = [_SHARD.fullmatch(file.name) for file in files]
    names = Counter(
        shard["name"] if shard else re.sub(r"\d+", "", file.name)
        for file, shard in zip(files, shards, strict=True)
    )
    if len(names) > 1:
        raise RequestError(
            f"{key}: the files of {folder} are not the parts of one data set: "
            f"{', '.join(sorted(file.name for file in files)[:6])}. Name one of them, or a pattern "
            f"such as {folder / ('train*' + ''.join(files[0].suffixes))}."
        )
    if shards[0] is not None and len(files) != int(shards[0]["count"]):
        raise RequestError(
            f"{key}: {folder} holds {len(files)} of the {int(shards[0]['count'])} parts of "
            f"{shards[0]['name']}; add the others, or name a pattern of those to use."
        )
    return files


def _check_not_pointer(key: str, file: Path) -> None:
    """Refuse the small text that Git leaves in place of a large file that was not downloaded."""
    try:
        with open(file, "rb") as stream:
            is_pointer = stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError as fault:
        raise RequestError(f"{key}: {file} cannot be read: {fault}.") from fault
    if is_pointer:
        raise RequestError(f"{key}: {file} is a Git LFS pointer; download the file (git lfs pull).")


def _usable(found: Iterable[Path]) -> list[Path]:
    return sorted(
        file
        for file in found
        if file.name.endswith(_FILE_ENDINGS) and not file.name.startswith(".") and file.is_file()
    )


def _hub_rows(key: str, source: Source) -> Iterator[RawRow]:
    dataset = _hub_dataset(key, source)
    features = getattr(dataset, "features", None)
    content = without_struct_nulls(features.arrow_schema) if features else None
    for number, row in enumerate(dataset, start=1):
        values = cast(Mapping[str, Any], row)
        yield RawRow(f"row {number}", values, content(values) if content else values)


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
            f"{key}.path: {source.path} is not a local file, and not available from the hub: "
            f"{reason}. Name a file, or go online."
        ) from fault
