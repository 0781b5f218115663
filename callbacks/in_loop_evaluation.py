"""Runs Lightning's validation loop when an evaluation is due, counted in optimizer steps."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.module import SFTModule


class InLoopEvaluation(Callback):
    """Evaluates before the first step, every n steps, at every stage boundary and at the end.

    Lightning counts ``val_check_interval`` in micro-batches, keeps no score of its sanity check,
    and skips an evaluation that was cut off by a kill. Here an evaluation at step s happens before
    step s is trained, and what has been measured is part of the checkpoint.

    Args:
        suite: Says when an evaluation is due.
    """

    def __init__(self, suite: EvaluationSuite) -> None:
        self.suite = suite
        self.evaluated_step = -1
        self.seconds = 0.0

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._evaluate_if_due(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Boundaries wait for the next stage's first batch; behind the last stage there is none.
        if (
            isinstance(pl_module, SFTModule)
            and pl_module.schedule
            and trainer.global_step == pl_module.schedule.num_steps
        ):
            self._evaluate_if_due(trainer, pl_module)

    def _evaluate_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
            raise TypeError("InLoopEvaluation evaluates an SFTModule with a schedule.")
        if step == self.evaluated_step or not self.suite.is_due(
            step, pl_module.schedule.boundaries
        ):
            return
        start = time.perf_counter()
        # What Lightning's own training loop does around a validation between two batches; it has no
        # public call for that. The validation loop itself sets and restores eval mode.
        connector = trainer._logger_connector
        first_loop_iter = connector._first_loop_iter
        with isolate_rng():
            trainer.validating = True
            try:
                trainer.fit_loop.epoch_loop.val_loop.run()
            finally:
                pl_module.release_generator()
                trainer.training = True
                connector._first_loop_iter = first_loop_iter
        self.seconds += time.perf_counter() - start
        self.evaluated_step = step

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_step": self.evaluated_step, "seconds": self.seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evaluated_step = state_dict["evaluated_step"]
        self.seconds = state_dict["seconds"]
