"""Make a local MLflow store, whole or not at all."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sft_lab.errors import RequestError
from sft_lab.runs.lock import waiting_lock
from sft_lab.runs.store_uri import URI_KEY, absolute

_FIX = "Restore a copy, or name another file."


def make_local_store(file: Path) -> None:
    """Make an SQLite store where there is none, or only a part of one that holds no run.

    MLflow migrates a new store for seconds. A process killed meanwhile, or a second one that starts
    meanwhile, leaves tables that MLflow can neither use nor migrate. So the store is migrated in a
    temporary file, under a lock, and moved into place.

    Raises:
        RequestError: If the file is damaged, or a database of something else.
    """
    if _is_whole(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(file.with_name(f".{file.name}.lock")):
        if _is_whole(file):  # another process has made it meanwhile
            return
        part = file.with_name(f".{file.name}.part")
        _remove(part)
        from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        uri = absolute(f"sqlite:///{part}")
        SqlAlchemyStore(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        _remove(file)
        os.replace(part, file)


def _is_whole(file: Path) -> bool:
    """Return whether a store has been made to its end: MLflow's last act is an experiment."""
    if not file.exists() or not file.stat().st_size:
        return False
    try:
        with closing(sqlite3.connect(file, timeout=60)) as store:
            tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
            if not tables:
                return False
            if "experiments" not in tables:
                raise RequestError(f"{URI_KEY}: {file} is a database of something else. {_FIX}")
            found = [
                store.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()
                for table in ("experiments", "runs")
                if table in tables
            ]
    except sqlite3.OperationalError:
        return True  # perhaps locked: MLflow waits for it, and raises what is wrong
    except sqlite3.DatabaseError as fault:
        raise RequestError(
            f"{URI_KEY}: {file} is a damaged SQLite database ({fault}). {_FIX}"
        ) from fault
    return any(found)


def _remove(file: Path) -> None:
    """Remove a database with its journal, which SQLite would apply to the next file of the name."""
    for path in (file, file.with_name(f"{file.name}-journal")):
        path.unlink(missing_ok=True)
