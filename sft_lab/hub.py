"""The hub: the commit that a name means, the rows of data sets, errors that name the fix."""

import functools
from pathlib import Path
from typing import Any, Literal

from sft_lab.errors import RequestError
from sft_lab.paths import settle_offline

Kind = Literal["dataset", "model"]
_TIMEOUT_S = 10.0


def load_dataset(
    key: str,
    name: str,
    subset: str | None,
    *,
    split: str,
    data_files: str | None,
    revision: str | None,
    instead: str,
) -> Any:
    """Return one split of a data set of the hub, or of the hub's cache where there is no network.

    Args:
        key: The config key that holds the name.
        name: The hub name.
        subset: Its configuration.
        split: The split, or several: ``prompt+test``.
        data_files: Which files to read; by default all of the split.
        revision: A branch, tag or commit; by default the main branch.
        instead: A local file that would do, for errors.

    Raises:
        RequestError: If it cannot be read.
    """
    _, folder = _snapshot(key, name, "dataset", revision, instead)
    import datasets  # a second, needed for hub names only

    # A folder of the cache is read where the hub cannot be asked which files there are.
    where = str(folder) if folder else name
    try:
        return datasets.load_dataset(
            where, subset, data_files=data_files, split=split, revision=None if folder else revision
        )
    except Exception as fault:  # load_dataset raises whatever its backends raise
        raise _unavailable(key, name, fault, instead) from fault


@functools.cache
def commit_of(
    key: str,
    name: str,
    kind: Kind,
    revision: str | None = None,
    instead: str = "a folder in Hugging Face format",
) -> str:
    """Return the commit that a hub name means, or meant in the cache where there is no network.

    It stays the same for a process, so that all parts of a run are of one commit.

    Args:
        key: The config key that holds the name.
        name: The hub name.
        kind: What it names.
        revision: A branch, tag or commit; by default the main branch.
        instead: What would do locally, for errors.

    Raises:
        RequestError: If the hub has no such name or revision, or neither hub nor cache answers.
    """
    return _snapshot(key, name, kind, revision, instead)[0]


def _snapshot(
    key: str, name: str, kind: str, revision: str | None, instead: str
) -> tuple[str, Path | None]:
    """Return the commit, and without a network the folder of the cache that holds it."""
    settle_offline()
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        if constants.HF_HUB_OFFLINE:
            found = snapshot_download(
                name, repo_type=kind, revision=revision, local_files_only=True
            )
            return Path(found).name, Path(found)
        info = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_TIMEOUT_S)
        return str(info.sha), None
    except Exception as fault:  # whatever the HTTP library raises
        raise _unavailable(key, name, fault, instead, revision) from fault


def _unavailable(
    key: str, name: str, fault: Exception, instead: str, revision: str | None = None
) -> RequestError:
    """Return the error of a name that the hub or its cache does not give."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(fault, RevisionNotFoundError):
        return RequestError(
            f"{key.removesuffix('path')}revision: {name} has no revision {revision!r} on the hub; "
            "name a branch, a tag or a whole commit of it."
        )
    said = f"{fault} {fault.__cause__ or ''}".strip() or type(fault).__name__
    reason = said.split("\n")[0].rstrip(". ")
    if isinstance(fault, GatedRepoError) or "gated" in reason:
        return RequestError(
            f"{key}: {name} is gated on the hub: accept its terms on its page there and log in "
            f"(hf auth login), or name {instead}."
        )
    if isinstance(fault, LocalEntryNotFoundError):
        at = f" at revision {revision}" if revision else ""
        return RequestError(
            f"{key}: {name} is not a local file, and the hub does not answer; its cache does not "
            f"hold it{at}. Name {instead}, or go online."
        )
    if isinstance(fault, RepositoryNotFoundError):
        return RequestError(
            f"{key}: {name} is not a local file, and the hub has no such name, or only for those "
            f"logged in (hf auth login). Name {instead}, or mend the name."
        )
    return RequestError(
        f"{key}: {name} is not a local file, and not available from the hub: {reason}. "
        f"Name {instead}, or go online."
    )
