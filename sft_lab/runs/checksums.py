"""Checksums of a run's files, which reveal a flipped bit or an edit when they are read."""

import hashlib
import os
from pathlib import Path

from sft_lab.errors import RequestError

_FILE = "sha256.txt"


class Checksums:
    """SHA-256 of the files in a folder, by path, in ``sha256.txt`` next to the folder.

    Lines are only appended, and before their file is written: after a kill the file is the old or
    the new one, and either has its line.

    Args:
        folder: The folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sums = folder.parent / _FILE

    def add(self, name: str, content: Path) -> None:
        """Note what a file is about to hold.

        Args:
            name: Its path in the folder.
            content: A file with that content.
        """
        self._sums.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW  # no link to elsewhere
        with open(os.open(self._sums, flags, 0o644), "a", encoding="utf-8") as sums:
            sums.write(f"{_sha256(content)}  {name}\n")

    def check(self, name: str) -> None:
        """Check a file, or all files below a folder; those without a line are taken as they are.

        Raises:
            RequestError: If a file holds something else than was written, or is gone.
        """
        known: dict[str, set[str]] = {}
        if self._sums.exists():
            for line in self._sums.read_text(encoding="utf-8").splitlines():
                digest, _, path = line.partition("  ")
                known.setdefault(path, set()).add(digest)
        for path in known:
            if path.startswith(f"{name}/") and not (self.folder / path).exists():
                raise RequestError(
                    f"{self.folder / path} is gone, or the run was stopped before it was written. "
                    "Restore a copy, or resume the run."
                )
        below = self.folder / name
        for file in [below] if below.is_file() else sorted(below.rglob("*")):
            digests = known.get(file.relative_to(self.folder).as_posix())
            if digests and file.is_file() and _sha256(file) not in digests:
                raise RequestError(
                    f"{file} has changed since the run wrote it: a damaged disk, or an edit. "
                    f"Restore a copy; to use it as it is, remove its line from {self._sums}."
                )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
