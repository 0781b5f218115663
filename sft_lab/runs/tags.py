"""The tags and parameters under which MLflow shows a run."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_lab.config.identity import digest
from sft_lab.paths import pinned
from sft_lab.runs.store import DIGEST_TAG


def run_tags(config: Mapping[str, Any], strategy: str, command: str) -> dict[str, str]:
    """Return what a run is, the digest by which it is found again, and the code's state."""
    return {
        "strategy": strategy,
        "command": command,
        "base": pinned(str(config["model"]["base"]), config["model"]["revision"]),
        "stages": ", ".join(config["data"]["stages"]),
        DIGEST_TAG: digest(config),
        **_git_tags(),
    }


def _git_tags() -> dict[str, str]:
    """Return commit and state of the checkout the code runs from; nothing where there is none."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout

    try:
        commit, changes = git("rev-parse", "HEAD").strip(), git("status", "--porcelain").strip()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {}
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config by dotted keys, as MLflow shows parameters.

    >>> flatten({"data": {"k": "1/16"}})
    {'data.k': '1/16'}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
