"""Digests of what a config only names: the base's files, and classes of the user's own."""

import contextlib
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sft_lab.paths import cache_dir, is_hub_name, package_dir, resolve

_LARGE = 2**26  # bytes; above it, a digest is worth keeping
_IN_CODE_DIGEST = ("sft_lab", "callbacks")


def base_digest(base: str) -> str:
    """Return what a base's weights and tokenizer are known by.

    Args:
        base: A folder, ``world://base`` or a hub name.

    Returns:
        A SHA-256 over the files of a folder; of a hub name, with the commit that lies in the cache,
        or the name alone where none does.
    """
    path = resolve(base)
    if is_hub_name(path):
        return f"{path}@{_commit(path)}"
    found = hashlib.sha256()
    for file in sorted(file for file in Path(path).iterdir() if file.is_file()):
        if not file.name.startswith("."):
            found.update(f"{file.name}\0{file_digest(file)}\0".encode())
    return found.hexdigest()


def _commit(name: str) -> str:
    """Return the commit of a hub name's main branch in the cache; "unknown" where it has none."""
    from huggingface_hub import try_to_load_from_cache

    # The tokenizer's has been looked at last, for the plan itself.
    for file in ("tokenizer_config.json", "config.json"):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return Path(found).parent.name
    return "unknown"


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file; of a large one kept, by its path, size and time of change."""
    state = file.stat()
    key = hashlib.sha256(f"{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode())
    kept = cache_dir() / "files" / key.hexdigest()
    is_large = state.st_size >= _LARGE
    if is_large and kept.is_file():
        return kept.read_text()
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if is_large:
        with contextlib.suppress(OSError):  # it is found anew the next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(digest)
    return digest


def class_digests(config: Any) -> dict[str, list[str]]:
    """Return, by ``class_path``, the SHA-256 of the files that define a class and what it extends.

    Classes of the lab are left out, whose code has a digest of its own. What such a file imports
    is not looked at.
    """
    return {
        path: [hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(path)]
        for path in sorted(set(_class_paths(config)))
        if path.split(".")[0] not in _IN_CODE_DIGEST
    }


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"]
        for value in config.values():
            yield from _class_paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from _class_paths(value)


def _files(path: str) -> list[Path]:
    module, _, name = path.rpartition(".")
    try:
        named = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []  # as a bare name, which the parser knows and which stands in the config
    sources: set[str] = set()
    for one in inspect.getmro(named) if inspect.isclass(named) else (named,):
        with contextlib.suppress(TypeError):  # built in
            sources.add(inspect.getsourcefile(one) or "")
    return sorted(Path(source) for source in sources if Path(source).is_file())


_WITHOUT_EFFECT = ("analysis", "callbacks", "commands", "cost", "report", "study")
"""Folders of the package that change no run; callbacks, a link, are added by themselves."""

_PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes")


def code_digest() -> str:
    """Return the digest of the code as it lies on the disk now, and of what it stands on.

    It holds every module but those of rooms that only plan, compare and draw runs.
    """
    folders = (package_dir(), package_dir() / "callbacks")
    found = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            place = file.relative_to(folder)
            if place.parts[0] not in _WITHOUT_EFFECT:
                found.update(f"{folder.name}/{place}\0".encode() + file.read_bytes() + b"\0")
    found.update(json.dumps({name: version(name) for name in _PACKAGES}).encode())
    return found.hexdigest()
