"""Rows by path or hub name, for sources and benchmarks alike: JSON, JSONL, Parquet, data sets."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from sft_lab.data.arrow_rows import parquet_rows, without_struct_nulls
from sft_lab.data.json_rows import json_rows
from sft_lab.errors import RequestError
from sft_lab.hub import commit_of, load_dataset
from sft_lab.paths import is_hub_name, resolve

FILE_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
_BLOCK_BYTES = 1 << 20
_LFS_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"(?P<name>.*)-(?P<number>\d+)-of-(?P<count>\d+)(?P<ending>\..*)")


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


def file_rows(key: str, file: Path) -> Iterator[RawRow]:
    """Yield the rows of one JSON, JSONL or Parquet file; any other name is read as JSONL.

    Raises:
        RequestError: If the file or a row cannot be read; the message begins with ``key``.
    """
    if file.suffix == ".parquet":
        for number, (values, content) in enumerate(parquet_rows(key, file), start=1):
            yield RawRow(f"row {number}", values, content)
    else:
        for place, row in json_rows(key, file):
            yield RawRow(place, row, row)


@dataclass(frozen=True)
class RowFiles:
    """The files that a path names, or a data set on the hub.

    Args:
        key: The config key, or option, that holds the path; the others are next to it.
        path: See ``Source``.
        split: See ``Source``.
        subset: See ``Source``.
        data_files: See ``Source``.
        revision: See ``Source``.
        instead: A local file that would do where the hub does not answer.
    """

    key: str
    path: str
    split: str = "train"
    subset: str | None = None
    data_files: str | None = None
    revision: str | None = None
    instead: str = "a JSON, JSONL or Parquet file of its rows"

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows in order.

        JSONL, Parquet and hub data sets are streamed; a ``.json`` list is parsed as a whole.

        Raises:
            RequestError: If they cannot be read, with the file and, if known, the line.
        """
        files = self.files()
        if files is None:
            yield from self._hub_rows()
            return
        for file in files:
            prefix = f"{file.name}, " if len(files) > 1 else ""
            for row in file_rows(self.key, file):
                yield row._replace(place=prefix + row.place)

    def digest(self) -> str | None:
        """Return a SHA-256 of the files as hex; None if a data set has none.

        Raises:
            RequestError: If they do not exist.
        """
        if (files := self.files()) is None:
            cached = getattr(self._dataset(), "cache_files", [])
            files = [Path(entry["filename"]) for entry in cached]
        digest = hashlib.sha256()
        for file in files:
            try:
                with open(file, "rb") as stream:
                    while block := stream.read(_BLOCK_BYTES):
                        digest.update(block)
            except OSError as fault:
                raise RequestError(f"{self.key}: {file} cannot be read: {fault}.") from fault
        return digest.hexdigest() if files else None

    def files(self) -> list[Path] | None:
        """Return the files by name, or None if the path is a hub name.

        Raises:
            RequestError: If there are none, they do not belong together, or settings are for the
                hub.
        """
        if not self.path:
            raise RequestError(f"{self.key} is empty; name a file or a hub name.")
        path = resolve(self.path)
        place = Path(path).expanduser()
        if os.path.isdir(place):
            files = _folder_files(self.key, place)
        elif os.path.isfile(place):  # unlike Path.is_file, false for a name that is too long
            if not path.endswith(FILE_ENDINGS):
                raise RequestError(f"{self.key}: {path} ends in none of {', '.join(FILE_ENDINGS)}.")
            files = [place]
        elif glob.has_magic(path):
            files = _usable(Path(found) for found in glob.glob(str(place), recursive=True))
            if not files:
                raise RequestError(
                    f"{self.key}: no file that ends in {', '.join(FILE_ENDINGS)} matches {path}."
                )
        elif path.endswith(FILE_ENDINGS) or not is_hub_name(path):
            raise RequestError(f"{self.key}: no such file: {path}.")
        else:
            return None
        choices: dict[str, str | None] = {"split": "train", "revision": None}
        if files != [place]:  # one file is chosen by its path, whatever it stands in for
            choices |= {"subset": None, "data_files": None}
        for file in files:
            _check_not_pointer(self.key, file)
        for setting, default in choices.items():
            if (value := getattr(self, setting)) != default:
                raise RequestError(
                    f"{self.key.removesuffix('path')}{setting}: files have none, got {value!r} for "
                    f"{path}; leave it out, and name the files of one split in {self.key}."
                )
        return files

    def commit(self) -> str | None:
        """Return the commit of a data set on the hub; None for files."""
        if self.files() is not None:
            return None
        return commit_of(self.key, self.path, "dataset", self.revision, self.instead)

    def _hub_rows(self) -> Iterator[RawRow]:
        dataset = self._dataset()
        features = getattr(dataset, "features", None)
        content = without_struct_nulls(features.arrow_schema) if features else None
        for number, row in enumerate(dataset, start=1):
            values = cast(Mapping[str, Any], row)
            yield RawRow(f"row {number}", values, content(values) if content else values)

    def _dataset(self) -> Any:
        return load_dataset(
            self.key,
            self.path,
            self.subset,
            split=self.split,
            data_files=self.data_files,
            revision=self.revision,
            instead=self.instead,
        )


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
            f"{key}: {folder} is a folder without files that end in {', '.join(FILE_ENDINGS)}."
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
        if file.name.endswith(FILE_ENDINGS) and not file.name.startswith(".") and file.is_file()
    )
