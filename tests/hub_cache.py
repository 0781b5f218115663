"""Provide a cache of the hub on disk, in its own layout: refs, blobs and snapshots of links."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest


class HubCache:
    """A folder of the form that ``huggingface_hub`` keeps its downloads in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, kind: str, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit of a repository, and return it."""
        repository = self.folder / f"{kind}s--{name.replace('/', '--')}"
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        for path, content in files.items():
            blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
            link = repository / "snapshots" / commit / path
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link.unlink(missing_ok=True)
            link.symlink_to(blob)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
        return commit

    def add_rows(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        subset: str = "default",
        splits: Mapping[str, slice] | None = None,
        branch: str = "main",
    ) -> str:
        """Add a data set of Parquet files, a file a split, with the card that names them."""
        splits = splits or {"train": slice(None)}
        lines = "".join(f"  - split: {split}\n    path: {subset}/{split}-*\n" for split in splits)
        card = f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n{lines}---\n"
        files = {"README.md": card.encode()}
        for split, part in splits.items():
            sink = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows[part])), sink)
            files[f"{subset}/{split}-00000-of-00001.parquet"] = sink.getvalue().to_pybytes()
        return self.add("dataset", name, files, branch)

    def add_json(self, name: str, file: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """Add a data set of one JSON lines file (or, by its ending, a list) without a card."""
        lines = [json.dumps(row) for row in rows]
        text = "[" + ",".join(lines) + "]" if file.endswith(".json") else "\n".join(lines)
        return self.add("dataset", name, {file: text.encode()})

    def add_model(self, name: str, folder: Path, branch: str = "main") -> str:
        """Add the files of a model's folder."""
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        return self.add("model", name, files, branch)

    def commit(self, kind: str, name: str, branch: str = "main") -> str:
        """Return the commit of a branch."""
        repository = self.folder / f"{kind}s--{name.replace('/', '--')}"
        return (repository / "refs" / branch).read_text()

    def remove(self, kind: str, name: str) -> None:
        """Remove a repository."""
        shutil.rmtree(self.folder / f"{kind}s--{name.replace('/', '--')}")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """An empty cache of the hub, of a process without a network."""
    import datasets
    from huggingface_hub import constants

    from sft_lab.hub import commit_of

    commit_of.cache_clear()
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return HubCache(folder)
