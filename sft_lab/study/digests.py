"""Digests of what a config only names: the base's files, the user's classes, the lab's code."""

import contextlib
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sft_lab.hub import commit_of
from sft_lab.model.base_digest import file_digest
from sft_lab.paths import is_hub_name, resolve, unpinned
from sft_lab.runs import inputs

_IN_CODE_DIGEST = ("sft_lab", "callbacks")


def json_digest(content: Any) -> str:
    """Return the SHA-256 of content as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def base_files_digest(base: str) -> str:
    """Return an identifier of a base's weights and tokenizer.

    Args:
        base: A folder, ``world://base`` or a hub name.

    Returns:
        For a folder, a SHA-256 over its files; for a hub name, ``NAME@COMMIT``.
    """
    path = resolve(base)
    if is_hub_name(path):
        name, revision = unpinned(path)
        return f"{name}@{commit_of('model.base', name, 'model', revision)}"
    found = hashlib.sha256()
    for file in sorted(file for file in Path(path).iterdir() if file.is_file()):
        if not file.name.startswith("."):
            found.update(f"{file.name}\0{file_digest(file)}\0".encode())
    return found.hexdigest()


def class_digests(config: Any) -> dict[str, list[str]]:
    """Return, by ``class_path``, the SHA-256 of the files that define a class and its bases.

    The lab's own classes are left out: ``code_digest`` covers them. Modules that these files
    import are ignored.
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
        return []  # a bare name: the parser knows it, and it is part of the config
    sources: set[str] = set()
    for defined in inspect.getmro(named) if inspect.isclass(named) else (named,):
        with contextlib.suppress(TypeError):  # built in
            sources.add(inspect.getsourcefile(defined) or "")
    return sorted(Path(source) for source in sources if Path(source).is_file())


_WITHOUT_EFFECT = ("analysis", "commands", "cost", "report", "study")
"""Folders of the package that change no run."""

_PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes")


def code_digest() -> str:
    """Return a digest of the code now on disk, and of the versions of the packages it builds on.

    Modules that only plan, compare and draw runs are left out.
    """
    versions = {name: version(name) for name in _PACKAGES}
    return json_digest([inputs.code_digest(_WITHOUT_EFFECT), versions])
