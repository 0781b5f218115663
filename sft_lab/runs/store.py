"""The runs of an MLflow store: finding them, and reading their artifacts."""

import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml

from sft_lab.errors import RequestError
from sft_lab.paths import make_folder
from sft_lab.runs.lock import is_alive
from sft_lab.runs.store_uri import URI_KEY, check_store, local_file

if TYPE_CHECKING:
    from sft_lab.runs.client import StoreClient

T = TypeVar("T")

_DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
DIGEST_TAG = "sft_lab.config_digest"
STUDY_TAG = "sft_lab.study"
PROCESS_TAG = "sft_lab.process"
CHANGES_TAG = "sft_lab.changed_on_resume"
TABLES_TAG = "mlflow.loggedArtifacts"
"""Which artifacts MLflow's page shows as tables."""

Kind = Literal["run", "study"]
_TAGS: dict[Kind, str] = {"run": DIGEST_TAG, "study": STUDY_TAG}
"""The tag that every run of a kind carries."""


def prepare_store(tracking_uri: str, experiment_name: str) -> None:
    """Check that a run can be recorded in a store, and make the folder of a local one.

    Raises:
        RequestError: If the folder is not writable, the experiment has been deleted, or
            ``check_store`` raises.
    """
    store = RunStore(tracking_uri)
    file = local_file(tracking_uri)
    if file is not None:
        make_folder(URI_KEY, file.parent)
    if not store.is_there:
        return
    experiment = store.client.get_experiment_by_name(experiment_name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise RequestError(
            f"trainer.logger.init_args.experiment_name: {experiment_name} has been deleted in "
            f"{tracking_uri}. Restore it (mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}), or name another."
        )


def parse_fork(text: str) -> tuple[str, str]:
    """Return run and stage of ``RUN@STAGE``; a run's name may contain an @, a stage's cannot.

    >>> parse_fork("dmt k=1/16 seed 0@specialize")
    ('dmt k=1/16 seed 0', 'specialize')
    """
    run, _, stage = text.rpartition("@")
    if not run or not stage:
        raise RequestError(
            f"--from: expected RUN@STAGE, such as 'mixed_sequential seed 0@specialize', "
            f"got {text!r}. RUN is an id, the beginning of one, or a run name."
        )
    return run, stage


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
    def client(self) -> "StoreClient":
        """The store's client; it makes a local store that does not exist."""
        from sft_lab.runs.client import StoreClient  # MLflow: seconds, and errors need none

        return StoreClient(self.tracking_uri)

    @property
    def is_there(self) -> bool:
        """Whether the store exists; a local one is made by the first run."""
        file = local_file(self.tracking_uri)
        return file is None or file.exists()

    def runs(self) -> list[Any]:
        """Return the lab's runs, newest first; those whose process has died are marked KILLED."""
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
        """Return the resumable runs, newest first."""
        return [run for run in self.runs() if run.info.status in ("KILLED", "FAILED")]

    def artifact_folder(self, run_id: str, path: str, into: Path) -> Path:
        """Return a copy of a folder among a run's artifacts.

        Raises:
            RequestError: If the run has none of that name.
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
            RequestError: If the run has none of that name.
        """
        from mlflow.exceptions import MlflowException

        try:
            with tempfile.TemporaryDirectory() as folder:
                return Path(self.client.download_artifacts(run_id, path, folder)).read_text()
        except (MlflowException, OSError) as fault:
            raise RequestError(
                f"run {run_id[:8]} has no {path}: it was stopped before that was written."
            ) from fault

    def artifact(self, run_id: str, path: str, read: Callable[[str], T]) -> T:
        """Return what a text artifact of a run holds.

        Args:
            run_id: The run.
            path: The artifact.
            read: Reads the text; raises an error if it is not what a run writes.

        Raises:
            RequestError: If the run has none of that name, or it is damaged.
        """
        try:
            return read(self.artifact_text(run_id, path))
        except RequestError:
            raise
        except (*_DAMAGED, yaml.YAMLError) as fault:
            raise RequestError(
                f"run {run_id[:8]}: {path} is damaged: {type(fault).__name__}, "
                f"{' '.join(str(fault).split())[:100]}. Restore a copy of the store's artifacts."
            ) from fault

    def check_artifacts(self, run_id: str, path: str) -> None:
        """Refuse a folder of a run's artifacts that lacks a file; a server's are not checked.

        Raises:
            RequestError: Naming the file.
        """
        self.client.check_artifacts(run_id, path)

    def config(self, run_id: str) -> dict[str, Any]:
        """Return the resolved config of a run.

        Raises:
            RequestError: As ``artifact``.
        """
        return self.artifact(run_id, "config.yaml", _read_config)

    def check_known(self, *names: str, kind: Kind = "run") -> None:
        """Refuse names of runs that a local store does not hold, without importing MLflow.

        Args:
            names: Ids, beginnings of ids, or names.
            kind: Whether they are training runs or studies.

        Raises:
            RequestError: If there is none of a name.
        """
        known = _local_runs(local_file(self.tracking_uri), kind)
        for name in names if known is not None else ():
            if not any(run_id.startswith(name) or name == title for run_id, title in known or ()):
                raise self.unknown(kind, name, known or ())

    def unknown(self, kind: Kind, name: str, known: Sequence[tuple[str, str]]) -> RequestError:
        """Return the error for a name that is none of the ids and names, newest first, there."""
        newest = ", ".join(f"{run_id[:8]} ({title})" for run_id, title in known[:5])
        return RequestError(
            f"no {kind} {name!r} in {self.tracking_uri}; most recent: {newest or 'none'}."
        )

    def find(self, name: str) -> Any:
        """Return the run of an id, of the unique beginning of one, or the newest run of a name.

        Of a name's runs a finished one is preferred: a later attempt that failed does not hide it.

        Raises:
            RequestError: If there is none, or several ids begin like that.
        """
        self.check_known(name)
        runs = self.runs()
        by_id = [run for run in runs if name and run.info.run_id.startswith(name)]
        by_name = [run for run in runs if run.info.run_name == name]
        if len(by_id) > 1:
            ids = ", ".join(run.info.run_id[:8] for run in by_id[:5])
            raise RequestError(f"RUN {name!r} fits several runs: {ids}. Give more of the id.")
        if not by_id and not by_name:
            raise self.unknown("run", name, [(run.info.run_id, run.info.run_name) for run in runs])
        finished = [run for run in by_name if run.info.status == "FINISHED"]
        return (by_id or finished or by_name)[0]


def _read_config(text: str) -> dict[str, Any]:
    config = yaml.safe_load(text)
    if not isinstance(config["data"]["stages"], dict):
        raise TypeError("it holds no stages")
    return dict(config)


def _local_runs(file: Path | None, kind: Kind) -> list[tuple[str, str]] | None:
    """Return ids and names of the lab's runs in a local store, newest first, as SQLite has them.

    Returns:
        None for a server, and where MLflow is left to say what is wrong with the file.
    """
    if file is None:
        return None
    if not file.exists():
        return []
    query = (
        "SELECT run_uuid, runs.name FROM runs JOIN tags USING (run_uuid) "
        "JOIN experiments USING (experiment_id) WHERE tags.key = ? "
        "AND runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active' "
        "ORDER BY start_time DESC"
    )
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as store:
            return list(store.execute(query, [_TAGS[kind]]))
    except sqlite3.Error:
        return None
