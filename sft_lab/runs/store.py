"""The MLflow store: the logger of a run, and finding runs again."""

import os
import tempfile
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

from mlflow.tracking import MlflowClient

from sft_lab.errors import RequestError
from sft_lab.paths import make_folder
from sft_lab.runs.lock import is_alive

DIGEST_TAG = "sft_lab.config_digest"
PROCESS_TAG = "sft_lab.process"
TABLES_TAG = "mlflow.loggedArtifacts"
"""Which artifacts MLflow's page shows as tables."""
_SQLITE = "sqlite:///"
_URI_KEY = "trainer.logger.init_args.tracking_uri"


def absolute(tracking_uri: str) -> str:
    """Return a store's URI with an absolute path: MLflow keeps stores open by their URI.

    >>> absolute("http://localhost:5000")
    'http://localhost:5000'
    """
    if not tracking_uri.startswith(_SQLITE):
        return tracking_uri
    return f"{_SQLITE}{Path(tracking_uri.removeprefix(_SQLITE)).absolute()}"


def prepare_store(tracking_uri: str, experiment_name: str) -> None:
    """Look that a run can be recorded in a store, and make the folder of a local one.

    Raises:
        RequestError: If the folder cannot be written to, the experiment has been deleted, or
            ``check_store`` finds a fault.
    """
    check_store(tracking_uri)
    file = local_file(tracking_uri)
    if file is not None:
        make_folder(_URI_KEY, file.parent)
        if not file.exists():
            return
    from mlflow.tracking import MlflowClient

    experiment = MlflowClient(absolute(tracking_uri)).get_experiment_by_name(experiment_name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise RequestError(
            f"trainer.logger.init_args.experiment_name: {experiment_name} has been deleted in "
            f"{tracking_uri}. Restore it (mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}), or name another."
        )


def local_file(tracking_uri: str) -> Path | None:
    """Return the file of a local store, None of a server."""
    is_local = tracking_uri.startswith(_SQLITE)
    return Path(tracking_uri.removeprefix(_SQLITE)) if is_local else None


def check_store(tracking_uri: str) -> None:
    """Look at a store, before MLflow tries for minutes; a local one need not be there yet.

    Raises:
        RequestError: If a file is no SQLite database, or no MLflow server answers.
    """
    # MLflow's telemetry and its retries: a lab's command should say at once that a server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    file = local_file(tracking_uri)
    if file is not None:
        _check_sqlite(file)
        return
    server = urlparse(tracking_uri)
    if server.scheme not in ("http", "https") or server.hostname is None:
        raise RequestError(
            f"{_URI_KEY}: expected sqlite:///FILE or http(s)://SERVER, got {tracking_uri!r}."
        )
    try:
        urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=5).close()
    except HTTPError as fault:
        # A server that wants to know who asks is left to MLflow, which has the credentials.
        if fault.code not in (401, 403):
            raise RequestError(
                f"{_URI_KEY}: what answers at {tracking_uri} is no MLflow server in good health "
                f"(/health: {fault.code} {fault.reason}). Correct the address, or look at it."
            ) from fault
    except (OSError, HTTPException) as fault:
        # So are certificates, for which MLflow has settings of its own.
        if not isinstance(getattr(fault, "reason", None), SSLError):
            raise RequestError(
                f"{_URI_KEY}: no MLflow server answers at {tracking_uri} ({fault}). "
                "Start it, or use sqlite:///mlruns/mlflow.db."
            ) from fault


def _check_sqlite(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
    except (FileNotFoundError, NotADirectoryError):
        return  # made, or refused, with its folder
    except OSError as fault:
        raise RequestError(
            f"{_URI_KEY}: {file} cannot be read: {fault.strerror}. Name another file."
        ) from fault
    if start and start != b"SQLite format 3\0":
        raise RequestError(
            f"{_URI_KEY}: {file} is no SQLite database. Name another file, or move this one away."
        )


class RunStore:
    """The runs of one MLflow store.

    Args:
        tracking_uri: As in ``RunLogger``.

    Raises:
        RequestError: If the store cannot be reached.
    """

    def __init__(self, tracking_uri: str) -> None:
        check_store(tracking_uri)
        self.tracking_uri = tracking_uri

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own client; it makes a local store that is not there."""
        return MlflowClient(absolute(self.tracking_uri))

    @property
    def is_there(self) -> bool:
        """Whether there is a store; a local one is made by the first run."""
        file = local_file(self.tracking_uri)
        return file is None or file.exists()

    def runs(self) -> list[Any]:
        """Return the lab's runs, newest first; those whose process is gone are marked KILLED."""
        if not self.is_there:
            return []
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found: list[Any] = []
        token: str | None = None
        while experiments:
            page = self.client.search_runs(
                experiments,
                filter_string=f"tags.`{DIGEST_TAG}` LIKE '%'",
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                break
        for run in found:
            process = run.data.tags.get(PROCESS_TAG)
            if run.info.status == "RUNNING" and process and not is_alive(process):
                self.client.set_terminated(run.info.run_id, "KILLED")
                run.info._status = "KILLED"
        return found

    def unfinished(self) -> list[Any]:
        """Return the runs that can be gone on with, newest first."""
        return [run for run in self.runs() if run.info.status in ("KILLED", "FAILED")]

    def artifact_folder(self, run_id: str, path: str, into: Path) -> Path:
        """Return a copy of a folder among a run's artifacts.

        Raises:
            RequestError: If the run has none of that name, as one that has not come to it.
        """
        from mlflow.exceptions import MlflowException

        try:
            return Path(self.client.download_artifacts(run_id, path, str(into)))
        except (MlflowException, OSError) as fault:
            raise RequestError(
                f"run {run_id[:8]} has no {path}: it was stopped before that was written."
            ) from fault

    def artifact_text(self, run_id: str, path: str) -> str:
        """Return a text artifact of a run.

        Raises:
            RequestError: If the run has none of that name, as one that was stopped at its start.
        """
        from mlflow.exceptions import MlflowException

        try:
            with tempfile.TemporaryDirectory() as folder:
                return Path(self.client.download_artifacts(run_id, path, folder)).read_text()
        except (MlflowException, OSError) as fault:
            raise RequestError(
                f"run {run_id[:8]} has no {path}: it was stopped too early."
            ) from fault

    def find(self, name: str) -> Any:
        """Return the run of an id, the unique beginning of one, or the newest run of a name.

        Raises:
            RequestError: If there is none, or an id's beginning fits several.
        """
        runs = self.runs()
        by_id = [run for run in runs if run.info.run_id.startswith(name)]
        by_name = [run for run in runs if run.info.run_name == name]
        if len(by_id) > 1:
            ids = ", ".join(run.info.run_id[:8] for run in by_id[:5])
            raise RequestError(f"RUN {name!r} fits several runs: {ids}. Give more of one id.")
        if not by_id and not by_name:
            newest = ", ".join(f"{run.info.run_id[:8]} ({run.info.run_name})" for run in runs[:5])
            raise RequestError(
                f"RUN {name!r} is no run in {self.tracking_uri}; the newest are {newest or 'none'}."
            )
        return (by_id or by_name)[0]
