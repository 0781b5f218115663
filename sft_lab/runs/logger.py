"""The logger that is a run's record in MLflow."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import cached_property
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from lightning import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from sft_lab.errors import RequestError, RunError
from sft_lab.runs.accidents import explain
from sft_lab.runs.lock import this_process
from sft_lab.runs.store import CHANGES_TAG, PROCESS_TAG
from sft_lab.runs.store_uri import absolute, local_file

if TYPE_CHECKING:  # MLflow takes a second to import, and a config is read without it
    from mlflow.entities import Metric

    from sft_lab.runs.client import StoreClient

_log = logging.getLogger(__name__)
_BATCH = 1000  # metrics that MLflow takes in one request
_PARAM_BATCH = 100
_LONGEST_PARAM = 250  # the most that MLflow 1 servers take
STOP_WAIT_S = 5.0  # for a server that is away when the run is to stop


NO_LOGGER = (
    "trainer.logger must be sft_lab.runs.logger.RunLogger, which files checkpoints, or a list with "
    "exactly one; configs/trainer.yaml has it."
)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_COLOUR_TAG = "mlflow.runColor"
"""The colour of a run in MLflow's charts; by default that of its id, which others may have too."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#5b3a8e", "#6b6b6b")


class RunLogger(Logger):
    """MLflow as a run's record: never the same point twice, and a status that is true.

    Nothing is opened or written before the first use, so that a run that is refused leaves nothing.
    Points for a server are sent by a thread, so that training continues while a server that is away
    is tried again; ``flush`` waits for them.

    Args:
        tracking_uri: ``sqlite:///FILE``, the file as it is named, or a server.
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
        super().__init__()
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.artifact_location = artifact_location
        self.run_name = run_name
        self._run_id = run_id
        self._start_tags = {PROCESS_TAG: this_process(), **(tags or {})}
        self._sender = None if local_file(tracking_uri) else _Sender()
        self._sending: list[Future[Any]] = []

    @property
    @override
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment_name

    @property
    @override
    def version(self) -> str | None:
        """The run's id; None before the first use."""
        return self._run_id

    @cached_property
    def experiment(self) -> "StoreClient":
        """The store's client; the first use makes the run."""
        import mlflow
        from mlflow.tracking.context.registry import resolve_tags

        from sft_lab.runs.client import StoreClient

        client = StoreClient(self.tracking_uri)
        mlflow.set_tracking_uri(absolute(self.tracking_uri))  # for artifacts that a server keeps
        if self._run_id is None:
            experiment_id = client.open_experiment(self.experiment_name, self.artifact_location)
            tags = {**resolve_tags(self._start_tags), _COLOUR_TAG: _colour(client, experiment_id)}
            run = client.create_run(experiment_id, tags=tags, run_name=self.run_name)
            self._run_id = run.info.run_id
        return client

    @property
    def run_id(self) -> str:
        """The run; the first use makes it."""
        if self._run_id is None:
            _ = self.experiment
        return str(self._run_id)

    def follow(self, run_id: str) -> None:
        """Name the run that another rank records; this one writes nothing."""
        self._run_id = run_id

    @cached_property
    def _logged(self) -> set[tuple[str, int]]:
        """Every (key, step) that the run has: an exact resume logs some of them again."""
        return {
            (key, point.step)
            for key in self.experiment.get_run(self.run_id).data.metrics
            for point in self.experiment.get_metric_history(self.run_id, key)
        }

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.log_points(
            [
                Metric(key, float(value), now, step or 0)
                for key, value in metrics.items()
                if (key, step or 0) not in self._logged
            ]
        )

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Log parameters by dotted key; MLflow cuts long values, ``config.yaml`` has them whole."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in params.items()]
        for start in range(0, len(entries), _PARAM_BATCH):
            self.experiment.log_batch(self.run_id, params=entries[start : start + _PARAM_BATCH])

    def log_points(self, points: Sequence["Metric"]) -> None:
        """Log points with times of their own; repeating it changes nothing."""
        self._collect()
        for start in range(0, len(points), _BATCH):
            batch = points[start : start + _BATCH]
            if self._sender is None:
                self.experiment.log_batch(self.run_id, batch)
            else:
                sent = self._sender.submit(self.experiment.log_batch, self.run_id, batch)
                self._sending.append(sent)
        self._logged.update((point.key, point.step) for point in points)

    @property
    def num_points(self) -> int:
        """The number of points that the run has logged."""
        return len(self._logged)

    def flush(self, is_stopping: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the store holds every point, and return whether it does.

        Args:
            is_stopping: Whether the run is to stop: it then waits ``STOP_WAIT_S`` at most.

        Raises:
            RunError: If its server has been away for longer than it is tried again.
        """
        waited_s = 0.0
        while True:
            self._collect()
            if not self._sending:
                return True
            if is_stopping() and waited_s >= STOP_WAIT_S:
                return False
            began = time.monotonic()
            wait(self._sending[:1], timeout=0.1)
            waited_s += (time.monotonic() - began) * is_stopping()

    def _collect(self) -> None:
        """Forget what has been sent, and raise what has failed."""
        from mlflow.exceptions import MlflowException

        while self._sending and self._sending[0].done():
            try:
                self._sending[0].result()
            except MlflowException as fault:
                raise RunError(explain(fault) or str(fault)) from fault
            del self._sending[0]  # a signal may have interrupted the wait

    def start(self) -> str:
        """Mark the run as running in this process, and return its id."""
        client, run_id = self.experiment, self.run_id
        # The process first: with the old one a resumed run would look killed.
        for tag, value in self._start_tags.items():
            client.set_tag(run_id, tag, value)
        client.update_run(run_id, status="RUNNING")
        return run_id

    def say_changes(self, changes: Sequence[str]) -> None:
        """Warn of what has changed under the run since its checkpoint, and keep it as a tag."""
        text = "; ".join(changes)
        _log.warning("changed since the checkpoint was written, so numbers may differ: %s", text)
        known = self.experiment.get_run(self.run_id).data.tags.get(CHANGES_TAG)
        self.experiment.set_tag(self.run_id, CHANGES_TAG, "; ".join(filter(None, [known, text])))

    def end(self, status: RunStatus) -> None:
        """Close the run; one that was stopped while its server is away counts as KILLED later."""
        if self.flush(lambda: status != "FINISHED"):
            self.experiment.set_terminated(self.run_id, status)


class _Sender:
    """Calls functions in one thread, in order; the process can end while one of them waits."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = (
            SimpleQueue()
        )
        Thread(target=self._run, daemon=True).start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a call."""
        future: Future[Any] = Future()
        self._calls.put((future, function, arguments))
        return future

    def _run(self) -> None:
        while True:
            future, function, arguments = self._calls.get()
            try:
                future.set_result(function(*arguments))
            except BaseException as fault:
                future.set_exception(fault)


def run_logger(trainer: Trainer) -> RunLogger:
    """Return the logger that is the run's record; others beside it get the same metrics.

    Raises:
        RequestError: If the trainer has none, or several.
    """
    found = [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
    if len(found) != 1:
        raise RequestError(f"{NO_LOGGER} Got {len(found)}.")
    return found[0]


def _colour(client: "StoreClient", experiment_id: str) -> str:
    """Return a colour that the newest runs of an experiment do not have."""
    newest = client.search_runs([experiment_id], max_results=len(_COLOURS) - 1)
    taken = {run.data.tags.get(_COLOUR_TAG) for run in newest}
    return next(colour for colour in _COLOURS if colour not in taken)
