"""The token cache: one folder per fingerprint, either complete or absent."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sft_lab.errors import RequestError
from sft_lab.paths import cache_dir

_UNFINISHED = ".unfinished-"
_ABANDONED_S = 24 * 3600


def cache_entry(fingerprint: str, write: Callable[[Path], None]) -> Path:
    """Return the folder of a cache entry, written first if it is missing.

    Args:
        fingerprint: SHA-256 of everything that determines its content.
        write: Fills an empty folder, which is then moved to its place as a whole.

    Raises:
        RequestError: If the cache cannot be written to.
    """
    tokens = cache_dir() / "tokens"
    entry = tokens / fingerprint
    if entry.is_dir():
        return entry
    folder: Path | None = None
    try:
        tokens.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(tokens)
        folder = Path(tempfile.mkdtemp(dir=tokens, prefix=_UNFINISHED))
        write(folder)
        with contextlib.suppress(OSError):  # another process was faster, with the same rows
            folder.rename(entry)
    except OSError as fault:  # such as a full disk; faults of the source are request errors
        raise RequestError(
            f"SFT_LAB_CACHE: tokenised rows cannot be kept under {tokens}: "
            f"{fault.strerror or fault}. Set it to a writable folder with free space."
        ) from fault
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return entry


def _remove_abandoned(tokens: Path) -> None:
    """Remove leftovers of killed runs: nothing in them was written for a day."""
    for left in tokens.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            written = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if time.time() - written > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
