import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from sft_lab.errors import RequestError
from sft_lab.paths import make_folder
from sft_lab.runs.lock import this_process
from sft_lab.runs.logger import RunLogger
from sft_lab.runs.store import DIGEST_TAG, PROCESS_TAG, RunStore, prepare_store


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def logger(uri: str, tmp_path: Path) -> RunLogger:
    return RunLogger(uri, artifact_location=str(tmp_path / "artifacts"), tags={DIGEST_TAG: "d"})


def test_a_point_that_the_run_holds_is_not_logged_again(logger: RunLogger, uri: str) -> None:
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_metrics({"loss": 2.0}, step=1)
    again = RunLogger(uri, run_id=logger.run_id)
    again.log_metrics({"loss": 2.0, "lr": 0.1}, step=1)
    again.log_metrics({"loss": 3.0}, step=2)
    again.log_metrics({"loss": 3.0}, step=2)
    client = logger.experiment
    points = client.get_metric_history(logger.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert len(client.get_metric_history(logger.run_id, "lr")) == 1


def test_a_run_whose_process_has_died_was_killed(logger: RunLogger, uri: str) -> None:
    logger.start()
    (run,) = RunStore(uri).runs()
    assert run.info.status == "RUNNING"  # this process lives
    gone = next(pid for pid in range(2**22 - 1, 0, -1) if not psutil.pid_exists(pid))
    logger.experiment.set_tag(logger.run_id, "sft_lab.process", f"{socket.gethostname()}:{gone}:0")
    (run,) = RunStore(uri).runs()
    assert run.info.status == "KILLED"
    assert logger.experiment.get_run(logger.run_id).info.status == "KILLED"


def test_a_living_run_survives_a_clock_that_is_set(
    logger: RunLogger, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.start()
    born = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: born - 86_400)
    assert RunStore(uri).runs()[0].info.status == "RUNNING"


def test_a_run_from_before_a_reboot_was_killed(logger: RunLogger, uri: str) -> None:
    logger.start()
    host, pid, birth = this_process().rsplit(":", 2)
    ticks = birth.partition(".")[2]
    logger.experiment.set_tag(logger.run_id, PROCESS_TAG, f"{host}:{pid}:0123456789ab.{ticks}")
    assert RunStore(uri).runs()[0].info.status == "KILLED"


def test_a_killed_process_that_nobody_has_waited_for_is_dead(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: child.pid)
        process = this_process()
    tags = {DIGEST_TAG: "d", "sft_lab.process": process}
    logger = RunLogger(uri, artifact_location=str(tmp_path / "artifacts"), tags=tags)
    logger.start()
    assert RunStore(uri).runs()[0].info.status == "RUNNING"
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert RunStore(uri).runs()[0].info.status == "KILLED"
    child.wait()


def test_a_deleted_experiment_is_refused(logger: RunLogger, uri: str) -> None:
    prepare_store(uri, "sft_lab")
    experiment = logger.experiment.get_experiment_by_name("sft_lab")
    logger.experiment.delete_experiment(experiment.experiment_id)
    with pytest.raises(RequestError, match=r"experiment_name: sft_lab has been deleted.* restore"):
        prepare_store(uri, "sft_lab")


def test_a_process_of_another_machine_is_left_alone(logger: RunLogger, uri: str) -> None:
    logger.start()
    logger.experiment.set_tag(logger.run_id, "sft_lab.process", "elsewhere:1:0")
    assert RunStore(uri).runs()[0].info.status == "RUNNING"


def test_a_run_has_its_process_from_its_first_moment(logger: RunLogger) -> None:
    # Killed before anything else is logged, it would stay RUNNING.
    tags = logger.experiment.get_run(logger.run_id).data.tags
    assert tags["sft_lab.process"].startswith(f"{socket.gethostname()}:{psutil.Process().pid}:")


def test_a_run_is_found_by_id_beginning_and_name(logger: RunLogger, uri: str) -> None:
    first = str(logger.run_id)
    client, store = logger.experiment, RunStore(uri)
    client.update_run(first, name="dmt seed 0")
    assert {store.find(name).info.run_id for name in (first, first[:6], "dmt seed 0")} == {first}
    with pytest.raises(
        RequestError, match=rf"no run 'sequential' in sqlite:.* {first[:8]} \(dmt seed 0\)"
    ):
        store.find("sequential")
    with pytest.raises(RequestError, match="no run '' in"):  # as from an unset variable
        store.find("")
    experiment = client.get_run(first).info.experiment_id
    others = [client.create_run(experiment, tags={DIGEST_TAG: "d"}) for _ in range(16)]
    # 17 ids begin with 16 digits.
    ids = [first, *(run.info.run_id for run in others)]
    digit = next(run_id[0] for run_id in ids if sum(run_id[0] == other[0] for other in ids) > 1)
    with pytest.raises(RequestError, match=f"RUN '{digit}' fits several runs"):
        store.find(digit)
    client.update_run(others[-1].info.run_id, name="dmt seed 0")
    assert store.find("dmt seed 0").info.run_id != first  # the newest of a name


def test_other_peoples_runs_are_not_ours(logger: RunLogger, uri: str) -> None:
    experiment = logger.experiment.get_run(logger.run_id).info.experiment_id
    logger.experiment.create_run(experiment)
    assert [run.info.run_id for run in RunStore(uri).runs()] == [logger.run_id]


@pytest.mark.parametrize("folder", ["file/below", "/proc/nothing"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=f"checkpoint.dirpath: .*{folder} cannot be made"):
        make_folder("checkpoint.dirpath", tmp_path / folder)


def test_a_file_that_is_not_a_database_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("notes, not runs")
    with pytest.raises(RequestError, match=r"mlflow.db is not an SQLite database. Name"):
        RunStore(f"sqlite:///{file}")
    assert file.read_text() == "notes, not runs"


@pytest.fixture
def server() -> Iterator[str]:
    """A web server that is not MLflow's: it has no page at all."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Empty) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_server_that_is_not_mlflow_is_refused(server: str) -> None:
    with pytest.raises(RequestError, match=r"is not a healthy MLflow server \(/health: 404"):
        RunStore(server)


@pytest.mark.parametrize("name", ["50%", "a%20b", "why?", "c#", "a b", "é", "a&b=c;d:e"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_store_is_made_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, relative: bool
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    root = Path() if relative else tmp_path / name
    # Artifacts inside the store's folder are recorded relative to it, and others as a URI.
    for artifacts in (root / "mlruns/artifacts", root / "beside"):
        uri = f"sqlite:///{root / 'mlruns/mlflow.db'}"
        prepare_store(uri, artifacts.name)
        logger = RunLogger(uri, artifacts.name, str(artifacts))
        logger.experiment.log_text(logger.run_id, "hello", "greeting.txt")
        client = RunStore(uri).client
        read = Path(client.download_artifacts(logger.run_id, "greeting.txt")).read_text()
        assert read == "hello"
        assert any(artifacts.rglob("greeting.txt"))
    assert (tmp_path / name / "mlruns/mlflow.db").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
