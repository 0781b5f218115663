"""Local stores that are made under accident: two processes at once, a kill half-way."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.db import utils
from sqlalchemy import create_engine

from sft_lab.errors import RequestError
from sft_lab.runs.client import StoreClient
from sft_lab.runs.local_store import make_local_store
from sft_lab.runs.logger import RunLogger
from sft_lab.runs.store import RunStore


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mlruns/mlflow.db"


def begin(file: Path) -> None:
    """Leave what a process leaves that is killed after MLflow's first tables."""
    file.parent.mkdir()
    utils.InitialBase.metadata.create_all(create_engine(f"sqlite:///{file}"))


def in_children(number: int, work: Callable[[], None]) -> list[int]:
    children = []
    for _ in range(number):
        if not (child := os.fork()):
            try:
                work()
            finally:  # never into pytest
                os._exit(int(os.sys.exc_info()[0] is not None))  # type: ignore[attr-defined]
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_processes_that_start_at_once_make_one_store(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialize, made = utils._initialize_tables, file.with_name("made")
    StoreClient(f"sqlite:///{file.with_name('warm.db')}")  # so that children only copy tables

    def slowly(engine: Any) -> None:
        with made.open("a") as log:
            log.write("x")
        time.sleep(0.1)
        initialize(engine)

    def first_run() -> None:
        logger = RunLogger(f"sqlite:///{file}", artifact_location=str(file.parent / "artifacts"))
        logger.log_metrics({"loss": 1.0}, step=0)

    monkeypatch.setattr(utils, "_initialize_tables", slowly)
    assert in_children(4, first_run) == [0, 0, 0, 0]
    assert made.read_text() == "x"
    client = StoreClient(f"sqlite:///{file}")
    experiments = {experiment.name for experiment in client.search_experiments()}
    assert experiments == {"Default", "sft_lab"}
    with closing(sqlite3.connect(file)) as store:
        assert store.execute("SELECT count(*) FROM runs").fetchone() == (4,)


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_half_made_store_is_made_again(file: Path, is_begun: bool) -> None:
    if is_begun:
        begin(file)
    else:  # killed before the first table
        file.parent.mkdir()
        file.touch()
    file.with_name("mlflow.db-journal").write_bytes(b"of the killed process")
    file.with_name(".mlflow.db.part").write_bytes(b"of another killed process")
    logger = RunLogger(f"sqlite:///{file}", artifact_location=str(file.parent / "artifacts"))
    assert logger.experiment.get_run(logger.run_id).info.status == "RUNNING"
    assert {path.name for path in file.parent.iterdir()} <= {"mlflow.db", ".mlflow.db.lock"}


def test_a_store_that_holds_a_run_is_never_made_again(file: Path) -> None:
    begin(file)
    with closing(sqlite3.connect(file)) as store, store:
        store.execute("INSERT INTO runs (run_uuid, experiment_id) VALUES ('1f', 0)")
    content = file.read_bytes()
    make_local_store(file)
    assert file.read_bytes() == content


def test_a_database_of_something_else_is_kept(file: Path) -> None:
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as store, store:
        store.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(RequestError, match=r"mlflow\.db is a database of something else"):
        StoreClient(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as store:
        assert store.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


def test_a_damaged_store_is_refused_in_one_line(file: Path) -> None:
    file.parent.mkdir()
    StoreClient(f"sqlite:///{file}")
    with file.open("r+b") as opened:
        opened.seek(4096 * 3)
        opened.write(b"\xff" * 4096 * 20)
        opened.seek(100)
        opened.write(b"\xff" * 100)
    with pytest.raises(RequestError, match=r"mlflow\.db is a damaged SQLite database \("):
        RunStore(f"sqlite:///{file}").runs()
