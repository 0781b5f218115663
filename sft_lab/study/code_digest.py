"""The digest of the code that trains and measures, by which runs of other code are told apart."""

import hashlib
import json
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from sft_lab.paths import package_dir

_PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes")


def code_digest() -> str:
    """Return the digest of the code as it lies on the disk now, and of what it stands on.

    It holds every module of the packages but those of studies, which run and draw it.
    """
    folders = (package_dir(), Path(str(files("callbacks"))))
    found = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            place = file.relative_to(folder)
            if place.parts[0] != "study":
                found.update(f"{folder.name}/{place}\0".encode() + file.read_bytes() + b"\0")
    found.update(json.dumps({name: version(name) for name in _PACKAGES}).encode())
    return found.hexdigest()
