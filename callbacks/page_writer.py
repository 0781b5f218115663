"""Keep a run's page in MLflow up to date: description, ``abilities.png`` and ``abilities.html``."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.runs.evaluations import Point
from sft_lab.runs.logger import run_logger
from sft_lab.runs.run_page import RunPage
from sft_lab.terminal import visible
from sft_lab.training.module import SFTModule

_NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""


class PageWriter(Callback):
    """Write the page again after every evaluation.

    Args:
        history: The evaluations; its hooks come first, and those of ``RunRecorder``.
        conclude: Returns the conclusion of a recorded run from its id and its evaluations so far.

    Attributes:
        conclusion: The newest conclusion; empty before the first evaluation.
    """

    def __init__(
        self, history: AbilityHistory, conclude: Callable[[str, Sequence[Point]], str]
    ) -> None:
        self.history = history
        self.conclude = conclude
        self.conclusion = ""

    def on_evaluation_end(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation
    ) -> None:
        """Write the page with the newest evaluation."""
        self._write(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)  # a fork begins with the evaluations of its parent

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.history.history or not self.history.suite.primary:
            return
        if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
            return
        logger = run_logger(trainer)
        client, run_id = logger.experiment, logger.run_id
        self.conclusion = self.conclude(run_id, self.history.history)
        page = RunPage(
            name=str(logger.run_name),
            conclusion=self.conclusion,
            points=self.history.history,
            abilities=self.history.suite.primary,
            stages=[(stage.name, stage.end_step) for stage in pl_module.schedule.stages],
        )
        client.set_tag(run_id, _NOTE, visible(page.description()))
        client.log_text(run_id, visible(page.html()), "abilities.html")
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "abilities.png"
            picture.write_bytes(page.png())
            client.log_artifact(run_id, str(picture))
