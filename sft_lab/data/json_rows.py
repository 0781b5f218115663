"""Rows of JSON and JSONL files, plain or compressed, with errors that name the line."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from sft_lab.errors import RequestError

_BLANK = b"\xef\xbb\xbf \t\r\n"
_MAX_LINE_BYTES = 64 << 20  # a row is a conversation; a small compressed file may hold any length
_MAX_LIST_BYTES = 2 << 30  # a list is parsed as a whole


def json_rows(key: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with its place, ``line n`` of JSONL or ``row n`` of a list.

    Raises:
        RequestError: If the file cannot be read, naming the line.
    """
    is_list = file.name.removesuffix(".gz").endswith(".json")
    try:
        with cast(
            IO[bytes], gzip.open(file) if file.suffix == ".gz" else open(file, "rb")
        ) as opened:
            for place, row in (_listed if is_list else _lines)(key, file, opened):
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
    number = 0
    while line := stream.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise RequestError(
                f"{key}: {file}, line {number} is longer than {_MAX_LINE_BYTES >> 20} MiB; a line "
                "holds one row. Split or remove it."
            )
        if line.strip(_BLANK):
            yield f"line {number}", _parse(key, f"{file}, line {number}", line)


def _listed(key: str, file: Path, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    content = stream.read(_MAX_LIST_BYTES + 1)
    if len(content) > _MAX_LIST_BYTES:
        raise RequestError(
            f"{key}: {file} holds more than {_MAX_LIST_BYTES >> 30} GiB, which would be parsed as "
            "a whole; write a row a line and name it .jsonl."
        )
    if not content.strip(_BLANK):
        return
    listed = _parse(key, str(file), content)
    if isinstance(listed, dict) and isinstance(listed.get("data"), list):
        listed = listed["data"]
    if not isinstance(listed, list):
        raise RequestError(
            f"{key}: {file} holds one {type(listed).__name__}, expected a list of rows, or an "
            "object with one under 'data'. If every line is a row, name it .jsonl."
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
        raise RequestError(
            f"{key}: {where} is not JSON: {fault.msg} at character {fault.pos + 1}. {_fix(fault)}"
        ) from fault
    except (ValueError, RecursionError) as fault:  # a number of 5,000 digits; 100,000 brackets
        raise RequestError(f"{key}: {where} cannot be parsed as JSON: {fault}.") from fault


def _fix(fault: json.JSONDecodeError) -> str:
    """Return how to mend a text that is not JSON."""
    before, after = fault.doc[: fault.pos].rstrip(), fault.doc[fault.pos :].strip()
    if fault.msg == "Extra data":
        if after == ",":
            return (
                "Remove the comma after the row: in JSONL, rows are separated by line breaks only."
            )
        return "Fix or remove it. If every line is a row, name it .jsonl."
    if before.endswith(",") and after[:1] in ("]", "}"):
        return "Remove the comma before the closing bracket."
    return "Fix or remove it."
