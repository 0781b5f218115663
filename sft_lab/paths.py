"""Where a path in a config points to: the user's disk, or what is shipped inside the package."""

import os
from importlib.resources import files
from pathlib import Path

from sft_lab.errors import RequestError

WORLD_SCHEME = "world://"


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


def find_config(path: str) -> Path:
    """Return a config file: as given, or of that name inside the package, so that any folder works.

    Raises:
        RequestError: If there is no such file in either place.
    """
    given = Path(path)
    if given.is_file():
        return given
    if not given.is_absolute() and given.parts[:1] == ("configs",):
        # An installed wheel holds the configs inside the package, a checkout beside it.
        for root in (package_dir(), package_dir().parent):
            if (root / given).is_file():
                return root / given
    kind = "is a folder" if given.is_dir() else "does not exist"
    raise RequestError(f"--config {path}: {kind}; give a YAML file such as configs/world/dmt.yaml.")
