"""Judgements on disk, one file each, so that none is paid for twice."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_lab.errors import RequestError


class JudgementStore:
    """A folder of answers by what was asked: the request's body, whichever endpoint it went to.

    Args:
        folder: Where the files lie; made when the first is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, request: Mapping[str, Any]) -> str:
        """Return the SHA-256 of a request, as hex."""
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    def read(self, key: str) -> str | None:
        """Return a kept answer; None where there is none.

        Raises:
            RequestError: If its file is damaged; names it.
        """
        path = self._path(key)
        try:
            answer = json.loads(path.read_bytes())["answer"]
            if not isinstance(answer, str):
                raise TypeError("its answer is no string")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as fault:
            raise RequestError(
                f"{path} holds no judgement that can be read: {fault}. Delete it to have it judged "
                "again."
            ) from fault
        return answer

    def keep(self, key: str, request: Mapping[str, Any], answer: str, served_model: Any) -> None:
        """Write an answer beside its place, force it to disk, and move it there.

        Args:
            key: Key of the request.
            request: What was asked, kept beside the answer for those who look.
            answer: What the judge said.
            served_model: The name under which the server answered, often a dated version.

        Raises:
            OSError: If it cannot be written.
        """
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{key}.{os.getpid()}.part")
        try:
            with open(part, "w", encoding="utf-8") as file:
                json.dump({**request, "answer": answer, "served_model": served_model}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def check(self) -> None:
        """Make sure that answers can be kept.

        Raises:
            RequestError: If the folder cannot be made or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as fault:
            raise RequestError(self.unwritable(fault)) from fault

    def unwritable(self, fault: OSError) -> str:
        """Return the message for a fault of ``keep``, with its fix."""
        return (
            f"Judgements cannot be kept under {self.folder}: {fault.strerror or fault}. "
            "Set cache, or SFT_LAB_CACHE, to a folder with room that can be written to."
        )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
