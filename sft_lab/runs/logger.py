"""The logger that is a run's record in MLflow."""

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning import Trainer
from lightning.pytorch.loggers import MLFlowLogger
from mlflow.entities import Metric
from typing_extensions import override

from sft_lab.errors import RequestError
from sft_lab.runs.client import StoreClient
from sft_lab.runs.lock import this_process
from sft_lab.runs.store import PROCESS_TAG
from sft_lab.runs.store_uri import absolute

_BATCH = 1000  # metrics that MLflow takes in one request


NO_LOGGER = (
    "trainer.logger must be sft_lab.runs.logger.RunLogger, which files checkpoints, or a list with "
    "exactly one; configs/trainer.yaml has it."
)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class RunLogger(MLFlowLogger):
    """MLflow as a run's record: never the same point twice, and a status that is true.

    Args:
        tracking_uri: ``sqlite:///...`` or a server.
        experiment_name: Runs of one experiment are compared in the MLflow UI.
        artifact_location: Where a local store keeps artifacts; a server decides for itself.
        run_name: The run's name; by default the strategy with what sets the run apart.
        run_id: The run to resume.
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
        self._start_tags = {PROCESS_TAG: this_process(), **(tags or {})}
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=absolute(tracking_uri),
            save_dir=None,
            artifact_location=artifact_location,
            run_id=run_id,
            tags=self._start_tags,
        )
        self.tracking_uri = tracking_uri
        self._client = StoreClient(tracking_uri)
        self._mlflow_client = self._client
        self._logged: set[tuple[str, int]] = set()
        if run_id is not None:
            self._logged = self._points(run_id)

    @property
    @override
    def experiment(self) -> StoreClient:
        """The store's client; the first use makes the run."""
        if self._run_id is None and self._experiment_id is None:
            self._experiment_id = self._client.open_experiment(
                self._experiment_name, self._artifact_location
            )
        _ = super().experiment
        return self._client

    @property
    @override
    def run_id(self) -> str:
        """The run; the first use makes it."""
        _ = self.experiment
        return str(self._run_id)

    def _points(self, run_id: str) -> set[tuple[str, int]]:
        """Return every (key, step) of the run: an exact resume logs some of them again."""
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
        """Log points with times of their own; repeating it changes nothing."""
        for start in range(0, len(points), _BATCH):
            self.experiment.log_batch(self.run_id, points[start : start + _BATCH])
        self._logged |= {(point.key, point.step) for point in points}

    def start(self) -> None:
        """Mark the run as running in this process."""
        client, run_id = self.experiment, self.run_id
        # The process first: with the old one a resumed run would look killed.
        for tag, value in self._start_tags.items():
            client.set_tag(run_id, tag, value)
        client.update_run(run_id, status="RUNNING")

    @override
    def finalize(self, status: str = "success") -> None:
        """Do nothing: Lightning knows only success and failure; ``end`` sets the status."""

    def end(self, status: RunStatus) -> None:
        """Close the run."""
        self.experiment.set_terminated(self.run_id, status)


def run_logger(trainer: Trainer) -> RunLogger:
    """Return the logger that is the run's record; others beside it get the same metrics.

    Raises:
        RequestError: If the trainer has none, or several.
    """
    found = [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
    if len(found) != 1:
        raise RequestError(f"{NO_LOGGER} Got {len(found)}.")
    return found[0]
