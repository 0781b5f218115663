"""MLflow's client for a store that can be moved: artifact locations relative to the store."""

import logging
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient
from typing_extensions import override

from sft_lab.paths import new_file
from sft_lab.runs.checksums import Checksums
from sft_lab.runs.local_store import make_local_store
from sft_lab.runs.store_uri import absolute, local_file

_KIND = ("mlflow.experimentKind", "custom_model_development")
"""The tag by which MLflow's page opens an experiment with its training runs."""

# It logs the traceback of every error that it raises, also of those that end in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class StoreClient(MlflowClient):
    """MLflow's client, finding the artifacts of a local store wherever it has been moved.

    A local store at ``mlruns/mlflow.db`` with artifacts below ``mlruns`` records where they are as
    ``mlruns/...``, relative to the folder that holds ``mlruns``. ``mlflow ui`` started in that
    folder finds them, since MLflow resolves relative locations against its working directory; this
    client resolves them against the store's file instead, whatever the working directory.

    Args:
        tracking_uri: ``sqlite:///FILE``, the file as it is named, or a server.
    """

    def __init__(self, tracking_uri: str) -> None:
        file = local_file(tracking_uri)
        if file is not None:
            make_local_store(file)
        super().__init__(absolute(tracking_uri))
        self._file = None if file is None else file.absolute()
        self._artifacts: dict[str, LocalArtifactRepository | None] = {}

    def open_experiment(self, name: str, artifact_location: str | None) -> str:
        """Return the id of an experiment, which is made if there is none of that name.

        Args:
            name: The experiment.
            artifact_location: Folder of its artifacts, for a local store; a server decides itself.
        """
        known = self.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        folder = None
        if self._file is not None and artifact_location is not None:
            folder = Path(artifact_location).resolve()
        location = None if folder is None else folder.as_uri()
        try:
            experiment_id = str(self.create_experiment(name, location))
            self.set_experiment_tag(experiment_id, *_KIND)
        except MlflowException as fault:
            if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self.open_experiment(name, artifact_location)  # made by another process
        if folder is None or self._file is None:
            return experiment_id
        if (relative := relative_location(self._file, folder)) is not None:
            # MLflow makes every location absolute that is given to it.
            with closing(sqlite3.connect(self._file)) as store, store:
                store.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                    (relative, experiment_id),
                )
        return experiment_id

    def _local(self, run_id: str) -> LocalArtifactRepository | None:
        """Return a run's artifacts if their location is relative."""
        if run_id not in self._artifacts:
            location = str(self.get_run(run_id).info.artifact_uri)
            folder = None if self._file is None else local_folder(self._file, location)
            self._artifacts[run_id] = (
                None if folder is None else LocalArtifactRepository(folder.as_uri())
            )
        return self._artifacts[run_id]

    @override
    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        if (artifacts := self._local(run_id)) is None:
            super().log_artifact(run_id, local_path, artifact_path)
        else:
            # Whole or not at all: a run may be killed while it writes, and be read afterwards.
            folder = Path(artifacts.artifact_dir)
            target = folder / (artifact_path or "") / Path(local_path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            with open(local_path, "rb") as old, new_file(part) as new:
                shutil.copyfileobj(old, new)
            Checksums(folder).add(target.relative_to(folder).as_posix(), part)
            os.replace(part, target)

    @override
    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        if self._local(run_id) is None:
            super().log_artifacts(run_id, local_dir, artifact_path)
            return
        for file in sorted(path for path in Path(local_dir).rglob("*") if path.is_file()):
            below = Path(artifact_path or "") / file.relative_to(local_dir).parent
            self.log_artifact(run_id, str(file), below.as_posix())

    @override
    def log_model_artifacts(
        self, model_id: str, local_dir: str, artifact_path: str | None = None
    ) -> None:
        location = str(self.get_logged_model(model_id).artifact_location)
        folder = None if self._file is None else local_folder(self._file, location)
        if folder is None:
            super().log_model_artifacts(model_id, local_dir, artifact_path)
            return
        from sft_lab.runs.checkpoint import link_or_copy  # torch

        for file in sorted(path for path in Path(local_dir).rglob("*") if path.is_file()):
            link_or_copy(file, folder / (artifact_path or "") / file.relative_to(local_dir))

    def copy_to_model(self, run_id: str, path: str, model_id: str, artifact_path: str) -> None:
        """Copy a folder of a run's artifacts into a logged model; a local store links the files."""
        with tempfile.TemporaryDirectory() as folder:
            is_in_place = self._local(run_id) is not None
            found = self.download_artifacts(run_id, path, "" if is_in_place else folder)
            self.log_model_artifacts(model_id, found, artifact_path)

    @override
    def list_artifacts(self, run_id: str, path: str | None = None) -> list[FileInfo]:
        if (artifacts := self._local(run_id)) is None:
            return super().list_artifacts(run_id, path)
        return artifacts.list_artifacts(path)

    @override
    def download_artifacts(self, run_id: str, path: str, dst_path: str | None = None) -> str:
        if (artifacts := self._local(run_id)) is None:
            return super().download_artifacts(run_id, path, dst_path)
        self.check_artifacts(run_id, path)
        return artifacts.download_artifacts(path, dst_path)

    def check_artifacts(self, run_id: str, path: str) -> None:
        """Check a file or folder of a local run against its checksums.

        Raises:
            RequestError: As ``Checksums.check``.
        """
        if (artifacts := self._local(run_id)) is not None:
            Checksums(Path(artifacts.artifact_dir)).check(path)


def relative_location(file: Path, folder: Path) -> str | None:
    """Return where a store's experiment keeps artifacts, relative to the folder above the store's.

    Args:
        file: The store's file, absolute.
        folder: The folder of artifacts, absolute.

    Returns:
        None, for an absolute location, if the artifacts do not lie in the store's folder, or if the
        commands run in that folder itself: ``mlflow ui`` started there would not find them.

    >>> relative_location(Path("/lab/mlruns/mlflow.db"), Path("/lab/mlruns/artifacts"))
    'mlruns/artifacts'
    """
    home = file.resolve().parent
    if not folder.is_relative_to(home) or home == Path.cwd() or not home.name:
        return None
    return folder.relative_to(home.parent).as_posix()


def local_folder(file: Path, location: str) -> Path | None:
    """Return the folder of a relative artifact location; None for an absolute one or another URI.

    The store's folder may have been renamed since.

    >>> local_folder(Path("/backup/old_runs/mlflow.db"), "mlruns/artifacts/1f/artifacts")
    PosixPath('/backup/old_runs/artifacts/1f/artifacts')
    """
    if ":" in location or location.startswith("/"):
        return None
    return file.parent.joinpath(*Path(location).parts[1:])
