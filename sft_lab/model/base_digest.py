"""A digest of a base's files, by which a change under a run is noticed."""

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from sft_lab.hub import commit_of
from sft_lab.paths import cache_dir, resolve, unpinned

_PATTERNS = ("*.safetensors", "*.bin", "*.index.json", "config.json")


def base_digest(base: str) -> str:
    """Return the SHA-256 of a base's weights and config, or the revision of one on the hub.

    Every byte counts. Hashing takes some seconds a gigabyte, so a file's digest is kept in the
    cache, under its path, inode, size, and times of change. What changes none of them, a disk that
    loses a bit, is noticed only where the digest is not in the cache yet.

    Args:
        base: A folder, ``world://base`` or a hub name, which must exist.
    """
    path = Path(resolve(base))
    if not path.is_dir():
        name, revision = unpinned(str(path))
        return f"revision {commit_of('model.base', name, 'model', revision)}"
    files = {file.name: file for pattern in _PATTERNS for file in path.glob(pattern)}
    found = {name: file_digest(file) for name, file in sorted(files.items())}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, kept in the cache as described in ``base_digest``."""
    stat = file.stat()
    decisive = [
        str(file.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    kept = cache_dir() / "digests" / key
    with suppress(OSError):
        known = kept.read_text()
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    with suppress(OSError):  # without the cache it is hashed again
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as part:
            part.write(digest)
        os.replace(part.name, kept)
    return digest
