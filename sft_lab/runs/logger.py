"""The MLflow logger of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import MLFlowLogger
from mlflow.entities import Metric
from typing_extensions import override

from sft_lab.runs.lock import this_process
from sft_lab.runs.store import _SQLITE, PROCESS_TAG, absolute

_BATCH = 1000  # metrics that MLflow takes in one request


NO_LOGGER = (
    "trainer.logger must be sft_lab.runs.logger.RunLogger, which files checkpoints; "
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
