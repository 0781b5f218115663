"""Resolve the paths of a config: on the user's disk, or shipped inside the package."""

import functools
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO

from sft_lab.errors import RequestError

WORLD_SCHEME = "world://"
_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?")


def package_dir() -> Path:
    """Return the folder of the installed ``sft_lab`` package."""
    return Path(str(files("sft_lab")))


def world_dir() -> Path:
    """Return the folder of the embedded world; ``SFT_LAB_WORLD`` points to another one."""
    return Path(os.environ.get("SFT_LAB_WORLD") or package_dir() / "world")


def cache_dir() -> Path:
    """Return the folder of what can be made again: ``SFT_LAB_CACHE``, else the user's cache."""
    given = os.environ.get("SFT_LAB_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sft_lab"


def resolve(path: str) -> str:
    """Turn ``world://x`` into the packaged file or folder; leave any other path or hub name alone.

    Raises:
        RequestError: If the packaged world holds nothing of that name.
    """
    if not path.startswith(WORLD_SCHEME):
        return path
    world = world_dir()
    target = world / path.removeprefix(WORLD_SCHEME)
    if not target.exists():
        known = sorted(
            f"{WORLD_SCHEME}{entry.relative_to(world)}"
            for entry in (world / "base", *(world / "data").glob("*.jsonl"))
            if entry.exists()
        )
        held = ", ".join(known) or "nothing; make one with python -m sft_lab world build"
        raise RequestError(f"{path} is not in the embedded world, {world}, which holds {held}.")
    return str(target)


def find_config(
    path: str, option: str = "--config", example: str = "configs/world/dmt.yaml"
) -> Path:
    """Return a config file: as given, or of that name inside the package, so that any folder works.

    Args:
        path: The path as given.
        option: The option that gave it, for the message.
        example: A file that would do, for the message.

    Raises:
        RequestError: If the file is in neither place.
    """
    given = Path(path)
    if os.path.isfile(given):  # unlike Path.is_file, false for a name that is too long
        return given
    if not given.is_absolute() and given.parts[:1] == ("configs",):
        packaged = package_dir() / given
        if packaged.is_file():
            return packaged
    kind = "is a folder" if os.path.isdir(given) else "does not exist"
    raise RequestError(f"{option} {path}: {kind}; give a YAML file such as {example}.")


def is_hub_name(name: str) -> bool:
    """Return whether a name that is not a local path could be one on the hub.

    >>> is_hub_name("openai/gsm8k"), is_hub_name("../data/math.jsonl")
    (True, False)
    """
    return _HUB_NAME.fullmatch(name) is not None and not os.path.exists(name)


def pinned(name: str, revision: str | None) -> str:
    """Return a hub name with its revision as one name, by which a base is passed on.

    >>> pinned("Qwen/Qwen3-0.6B", "v1"), pinned("world://base", None)
    ('Qwen/Qwen3-0.6B@v1', 'world://base')
    """
    return name if revision is None else f"{name}@{revision}"


def unpinned(name: str) -> tuple[str, str | None]:
    """Return the parts of a name that ``pinned`` made; a folder is a name of its own.

    >>> unpinned("Qwen/Qwen3-0.6B@v1"), unpinned("../runs/a@b/c")
    (('Qwen/Qwen3-0.6B', 'v1'), ('../runs/a@b/c', None))
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None or match["revision"] is None or os.path.exists(name):
        return name, None
    return match["name"], match["revision"]


@functools.cache
def settle_offline() -> None:
    """Switch the hub's libraries to their caches for this process if the hub does not answer.

    Each of them would find out by itself, file by file and with five retries each.
    """
    # All three take a second or more to import, and most runs name local files only.
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=3.0)
    except Exception:  # whatever the HTTP library raises, nobody answered
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True


def check_folder(key: str, folder: Path) -> None:
    """Check that a folder that a key names can be made and written to, without making it.

    Raises:
        RequestError: If it cannot.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        reason = f"{folder} cannot be made: {nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"no permission to write in {nearest}"
    else:
        return
    raise RequestError(f"{key}: {reason}. Name a folder you may write to.")


def new_file(path: Path) -> BinaryIO:
    """Open a new file for writing, in place of one that a killed process may have left.

    It is never written through a link, which somebody else may have put there.
    """
    path.unlink(missing_ok=True)
    return open(path, "xb")


def make_folder(key: str, folder: Path) -> None:
    """Make a folder that a key names, so that a run does not fail at its first file.

    Raises:
        RequestError: If it cannot be made or written to.
    """
    check_folder(key, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise RequestError(
            f"{key}: {folder} cannot be made: {fault.strerror}. Name a folder you may write to."
        ) from fault
