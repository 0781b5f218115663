"""Evaluates when an evaluation is due, counted in optimizer steps."""

import time
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from sft_lab.evaluation.budget import Pace, items_between
from sft_lab.evaluation.evaluator import Evaluation, Evaluator
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.model.qlora import compute_dtype
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule


class InLoopEvaluation(Callback):
    """Evaluates before the first step, every n steps, at every stage boundary and at the end.

    Lightning's validation counts ``val_check_interval`` in micro-batches, logs no score of its
    sanity check, and skips an evaluation that was interrupted by a kill. Here an evaluation at step
    s happens before step s is trained, and the last evaluated step is part of the checkpoint.

    With a budget, the number of items between boundaries is chosen once, when the first such
    evaluation is due; it is kept, so that a resumed run measures the same items.

    Args:
        suite: The benchmarks, when an evaluation is due, and what share of the time it may take.
    """

    def __init__(self, suite: EvaluationSuite) -> None:
        self.suite = suite
        self.evaluated_step = -1
        self.seconds = 0.0
        self.full_s = 0.0  # of the last evaluation on all items
        self.items_between: dict[str, int] | None = None
        # The step of the last evaluation and when it ended; not in the checkpoint, because time
        # passes while a run is stopped.
        self._trained_from: tuple[int, float] | None = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._evaluate_if_due(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A boundary is evaluated before the next stage's first batch; after the last stage there is
        # none.
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
        num_items = None if full else self.items_between
        self.evaluate(trainer, pl_module, step, num_items)
        took_s = time.perf_counter() - start
        self.seconds += took_s
        if full:
            self.full_s = took_s
        self.evaluated_step = step
        self._trained_from = (step, time.perf_counter())

    def evaluate(
        self,
        trainer: Trainer,
        pl_module: SFTModule,
        step: int,
        num_items: Mapping[str, int] | None = None,
    ) -> Evaluation:
        """Evaluate a model and hand the evaluation to every callback that listens.

        Listeners have ``on_evaluation_start(trainer, pl_module)``, ``on_evaluation_part(trainer,
        pl_module, line)``, called with a line for people as each part begins, and
        ``on_evaluation_end(trainer, pl_module, evaluation)``.

        Args:
            trainer: Its callbacks listen, its precision is that of forward passes.
            pl_module: Holds the model.
            step: Optimizer steps taken.
            num_items: How many items to use, by benchmark; all by default.
        """
        evaluator = Evaluator(
            self.suite,
            trainer.datamodule.corpus.renderer,  # type: ignore[attr-defined]
            dtype=compute_dtype(str(trainer.precision)),
            forward_context=trainer.precision_plugin.val_step_context,
            report=lambda line: _call(trainer, "on_evaluation_part", pl_module, line),
        )
        with isolate_rng():
            _call(trainer, "on_evaluation_start", pl_module)
            evaluation = evaluator.evaluate(
                pl_module.model, step, num_items=num_items, losses=pl_module.held_out_losses
            )
            _call(trainer, "on_evaluation_end", pl_module, evaluation)
        return evaluation

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
            "engine": self.suite.engine.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evaluated_step = state_dict["evaluated_step"]
        self.seconds = state_dict["seconds"]
        self.full_s = state_dict["full_s"]
        self.items_between = state_dict["items_between"]
        self.suite.engine.load_state_dict(state_dict["engine"])


def _call(trainer: Trainer, hook: str, *arguments: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (listener := getattr(callback, hook, None)) is not None:
            listener(trainer, *arguments)
