"""Order rows by a hash of their content, for shares and held-out rows."""

import hashlib
from collections.abc import Sequence


def hash_rank(digests: Sequence[str], seed: int) -> list[int]:
    """Return row indices ordered by a hash of each sample's content and a seed.

    The order depends on nothing else: not on the file's order, on other sources, on the machine or
    on Python's version. Its beginnings are nested subsets. Equal samples keep their file order.
    """
    keys = [hashlib.sha256(f"{seed}:{digest}".encode()).digest() for digest in digests]
    return sorted(range(len(digests)), key=lambda row: (keys[row], row))
