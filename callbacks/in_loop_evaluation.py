"""Runs Lightning's validation loop when an evaluation is due, counted in optimizer steps."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from sft_lab.evaluation.budget import Pace, items_between
from sft_lab.evaluation.prompts import Prompts
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule


class InLoopEvaluation(Callback):
    """Evaluates before the first step, every n steps, at every stage boundary and at the end.

    Lightning counts ``val_check_interval`` in micro-batches, keeps no score of its sanity check,
    and skips an evaluation that was cut off by a kill. Here an evaluation at step s happens before
    step s is trained, and what has been measured is part of the checkpoint.

    With a budget, the items of evaluations between boundaries are counted once, when the first of
    them is due; the counts are kept, so that a run that goes on measures the same items.

    Args:
        suite: Says when an evaluation is due, and what share of the time it may take.
    """

    def __init__(self, suite: EvaluationSuite) -> None:
        self.suite = suite
        self.evaluated_step = -1
        self.seconds = 0.0
        self.full_s = 0.0  # of the last evaluation on all items
        self.items_between: dict[str, int] | None = None
        # The step of the last evaluation and when it ended; not kept, for time goes on without us.
        self._trained_from: tuple[int, float] | None = None

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
        full = step == 0 or step in pl_module.schedule.boundaries or self.suite.budget is None
        if not full and self.items_between is None and self._trained_from is not None:
            self.items_between = self._count_items(trainer, pl_module.schedule, *self._trained_from)
        for eval_set in trainer.datamodule.eval_sets:  # type: ignore[attr-defined]
            if isinstance(eval_set, Prompts):
                counts = {} if full or self.items_between is None else self.items_between
                eval_set.use(counts.get(eval_set.name))
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
        took_s = time.perf_counter() - start
        self.seconds += took_s
        if full:
            self.full_s = took_s
        self.evaluated_step = step
        self._trained_from = (step, time.perf_counter())

    def _count_items(
        self, trainer: Trainer, schedule: Schedule, since: int, began: float
    ) -> dict[str, int]:
        assert self.suite.budget is not None
        step = trainer.global_step
        steps = range(schedule.num_steps + 1)
        due = [at for at in steps if self.suite.is_due(at, schedule.boundaries)]
        num_full = len({0, *schedule.boundaries})
        pace = Pace(
            evaluation_s=self.full_s,
            step_s=(time.perf_counter() - began) / (step - since),
            num_steps=schedule.num_steps,
            num_full=num_full,
            num_between=len(due) - num_full,
        )
        sizes = {name: len(b.items()) for name, b in self.suite.benchmarks.items()}
        counts = items_between(sizes, self.suite.budget, pace)
        for logger in trainer.loggers:
            logger.log_hyperparams(
                {f"items_between.{name}": count for name, count in counts.items()}
            )
        return counts

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "evaluated_step": self.evaluated_step,
            "seconds": self.seconds,
            "full_s": self.full_s,
            "items_between": self.items_between,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evaluated_step = state_dict["evaluated_step"]
        self.seconds = state_dict["seconds"]
        self.full_s = state_dict["full_s"]
        self.items_between = state_dict["items_between"]
