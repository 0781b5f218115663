"""Keep judgements on disk, one file each, so that none is paid for twice."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_lab.errors import RequestError


class JudgementStore:
    """Keep answers in a folder, by the request's body, whichever endpoint it was sent to.

    Args:
        folder: Folder of the files; created for the first answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, request: Mapping[str, Any], number: int = 0) -> str:
        """Return the SHA-256 of a request, and of which answer to it from the second on, as hex."""
        text = json.dumps([number, request] if number else request, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, key: str) -> str | None:
        """Return a stored answer, or None if there is none.

        Raises:
            RequestError: If its file is damaged; names it.
        """
        path = self._path(key)
        try:
            content = json.loads(path.read_bytes())
            answer = content["answer"]
            if not isinstance(answer, str):
                raise TypeError("its answer is not a string")
            if content["sha256"] != _checksum(key, answer):
                raise ValueError("it has changed since it was written")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as fault:
            raise RequestError(
                f"{path} holds no readable judgement: {fault}. Delete it to ask the judge again."
            ) from fault
        return answer

    def keep(self, key: str, request: Mapping[str, Any], answer: str, served_model: Any) -> None:
        """Write an answer atomically: to a temporary file, synced to disk, then moved into place.

        Args:
            key: Key of the request.
            request: The request, stored with the answer for inspection.
            answer: The judge's answer.
            served_model: The name under which the server answered, often a dated version.

        Raises:
            OSError: If it cannot be written.
        """
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{key}.{os.getpid()}.part")
        try:
            judgement = {"answer": answer, "served_model": served_model}
            with open(part, "x", encoding="utf-8") as file:  # never through a link
                json.dump({**request, **judgement, "sha256": _checksum(key, answer)}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def check(self) -> None:
        """Check that answers can be stored.

        Raises:
            RequestError: If the folder cannot be created or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as fault:
            raise RequestError(self.unwritable(fault)) from fault

    def unwritable(self, fault: OSError) -> str:
        """Return the message for an error of ``keep``, with its fix."""
        return (
            f"judgements cannot be stored under {self.folder}: {fault.strerror or fault}. "
            "Set cache, or SFT_LAB_CACHE, to a writable folder with free space."
        )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _checksum(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key} {answer}".encode("utf-8", "surrogatepass")).hexdigest()
