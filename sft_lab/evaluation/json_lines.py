"""JSONL files, plain or compressed, read line by line with errors that name the line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from sft_lab.errors import RequestError


def json_lines(path: str, name: str) -> Iterator[tuple[int, Any]]:
    """Yield the line number and value of each row of a JSONL file, also ``.gz``.

    Raises:
        RequestError: If the file or a line cannot be read; the message begins with ``name``.
    """
    try:
        with cast(
            IO[bytes], gzip.open(path) if path.endswith(".gz") else open(path, "rb")
        ) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except json.JSONDecodeError as error:
                    raise RequestError(
                        f"{name}, line {number}: not JSON at column {error.colno}: {error.msg}."
                    ) from error
                except UnicodeDecodeError as error:
                    raise RequestError(
                        f"{name}, line {number}: {error.reason}; it must be UTF-8 text."
                    ) from error
                except (ValueError, RecursionError) as error:  # 5,000 digits; 100,000 brackets
                    raise RequestError(
                        f"{name}, line {number}: unreadable JSON: {error}."
                    ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{name}: {reason}; it must be a readable JSONL file.") from error
