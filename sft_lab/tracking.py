"""The MLflow store: the logger of a run, and finding runs again."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import psutil
from lightning.pytorch.loggers import MLFlowLogger
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from typing_extensions import override

from sft_lab.config import digest
from sft_lab.errors import RequestError

DIGEST_TAG = "sft_lab.config_digest"
PROCESS_TAG = "sft_lab.process"
TABLES_TAG = "mlflow.loggedArtifacts"
"""Which artifacts MLflow's page shows as tables."""
_SQLITE = "sqlite:///"
_BATCH = 1000  # metrics that MLflow takes in one request
_URI_KEY = "trainer.logger.init_args.tracking_uri"

NO_LOGGER = (
    "trainer.logger must be sft_lab.tracking.RunLogger, which files checkpoints; "
    "configs/trainer.yaml has it."
)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class RunLogger(MLFlowLogger):
    """MLflow as a run's record: never the same point twice, and a status that tells the truth.

    Args:
        tracking_uri: ``sqlite:///...`` or a server.
        experiment_name: Runs of one experiment are compared in the MLflow UI.
        artifact_location: Where a local store keeps artifacts; a server decides for itself.
        run_name: The run's name; by default the strategy with what sets the run apart.
        run_id: Goes on with this run.
        tags: Tags that the run has from its first moment; the lab adds its own, which win.
    """

    def __init__(
        self,
        tracking_uri: str = "sqlite:///mlruns/mlflow.db",
        experiment_name: str = "sft_lab",
        artifact_location: str | None = "mlruns/artifacts",
        run_name: str | None = None,
        run_id: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        is_local = tracking_uri.startswith(_SQLITE)
        self._start_tags = {PROCESS_TAG: this_process(), **(tags or {})}
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=absolute(tracking_uri),
            save_dir=None,
            # As a URI: MLflow takes a relative path as relative to wherever it is read.
            artifact_location=Path(artifact_location).resolve().as_uri()
            if is_local and artifact_location
            else None,
            run_id=run_id,
            tags=self._start_tags,
        )
        self.tracking_uri = tracking_uri
        self._logged: set[tuple[str, int]] = set()
        if run_id is not None:
            self._logged = self._points(run_id)

    def _points(self, run_id: str) -> set[tuple[str, int]]:
        """Every (key, step) the run holds: what an exact resume logs again, it would hold twice."""
        keys = self._mlflow_client.get_run(run_id).data.metrics
        return {
            (key, point.step)
            for key in keys
            for point in self._mlflow_client.get_metric_history(run_id, key)
        }

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        points = {(key, step or 0) for key in metrics}
        missing = {key: metrics[key] for key, _ in points - self._logged}
        if missing:
            super().log_metrics(missing, step=step)
        self._logged |= points

    def log_points(self, points: Sequence[Metric]) -> None:
        """Log points with times of their own; to repeat it changes nothing."""
        for start in range(0, len(points), _BATCH):
            self.experiment.log_batch(self.run_id, points[start : start + _BATCH])
        self._logged |= {(point.key, point.step) for point in points}

    def start(self) -> None:
        """Mark the run as running in this process."""
        client, run_id = self.experiment, self.run_id
        # The process first: with the old one a run that is gone on with would look killed.
        for tag, value in self._start_tags.items():
            client.set_tag(run_id, tag, value)
        client.update_run(run_id, status="RUNNING")

    @override
    def finalize(self, status: str = "success") -> None:
        """Do nothing: Lightning knows only success and failure, and ``end`` says more."""

    def end(self, status: RunStatus) -> None:
        """Close the run."""
        self.experiment.set_terminated(self.run_id, status)


def absolute(tracking_uri: str) -> str:
    """Return a store's URI with an absolute path: MLflow keeps stores open by their URI.

    >>> absolute("http://localhost:5000")
    'http://localhost:5000'
    """
    if not tracking_uri.startswith(_SQLITE):
        return tracking_uri
    return f"{_SQLITE}{Path(tracking_uri.removeprefix(_SQLITE)).absolute()}"


def make_folder(key: str, folder: Path) -> None:
    """Make a folder that a key names, so that a run does not fail at its first file.

    Raises:
        RequestError: If it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise RequestError(
            f"{key}: {folder} cannot be made: {fault.strerror}. Name a folder you may write to."
        ) from fault
    if not os.access(folder, os.W_OK):
        raise RequestError(
            f"{key}: no permission to write in {folder}. Name a folder you may write to."
        )


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


def this_process() -> str:
    """Return the name of this process, the same on no machine and at no other time."""
    process = psutil.Process()
    # Process ids are used again; with the start time they are not.
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def is_elsewhere(process: str) -> bool:
    """Say whether the process of a tag was started on another machine."""
    return process.rsplit(":", 2)[0] != socket.gethostname()


def is_alive(process: str) -> bool:
    """Say whether the process of a tag still runs; one on another machine is taken to."""
    if is_elsewhere(process):
        return True
    _, pid, created = process.rsplit(":", 2)
    try:
        found = psutil.Process(int(pid))
        # A killed process that its parent has not asked after is a zombie: it is there, and dead.
        # The start time is reckoned from the clock, which may have been set a little meanwhile.
        return (
            found.status() != psutil.STATUS_ZOMBIE
            and abs(found.create_time() - float(created)) < 60
        )
    except psutil.NoSuchProcess:
        return False


def run_tags(config: Mapping[str, Any], strategy: str, command: str) -> dict[str, str]:
    """Return what a run is, the digest by which it is found again, and the code's state."""
    return {
        "strategy": strategy,
        "command": command,
        "base": str(config["model"]["base"]),
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
