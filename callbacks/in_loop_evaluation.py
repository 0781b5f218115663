"""Evaluates when an evaluation is due, counted in optimizer steps."""

import time
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from sft_lab import distributed
from sft_lab.evaluation.budget import Pace, guarded_evaluations, items_between
from sft_lab.evaluation.evaluator import Evaluation, Evaluator
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.model.qlora import compute_dtype
from sft_lab.training.guard import Guard
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule


class InLoopEvaluation(Callback):
    """Evaluates before the first step, every n steps, at every stage boundary and at the end.

    Lightning's validation counts ``val_check_interval`` in micro-batches, logs no score of its
    sanity check, and skips an evaluation that was interrupted by a kill. Here an evaluation at step
    s happens before step s is trained, and the last evaluated step is part of the checkpoint.

    With a budget, the number of items between boundaries is chosen once, when the first such
    evaluation is due; it is kept, so that a resumed run measures the same items. Inside a guarded
    stage all selection items that its guard reads are measured as well.

    Args:
        suite: The benchmarks, when an evaluation is due, and what share of the time it may take.
        guard: The guard that reads the evaluations, if there is one.
    """

    def __init__(self, suite: EvaluationSuite, guard: Guard | None = None) -> None:
        self.suite = suite
        self.guard = guard
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
            counted = partial(self._count_items, trainer, pl_module.schedule, *self._trained_from)
            self.items_between = distributed.by_first(counted)
        if full:
            self.evaluate(trainer, pl_module, step)
        else:
            is_guarded = self._is_guarded(step, pl_module.schedule)
            selection = self.guard.benchmarks() if self.guard and is_guarded else set()
            self.evaluate(trainer, pl_module, step, self.items_between, selection)
        took_s = time.perf_counter() - start
        self.seconds += took_s
        if full:
            self.full_s = took_s
        self.evaluated_step = step
        self._trained_from = (step, time.perf_counter())

    def _is_guarded(self, step: int, schedule: Schedule) -> bool:
        """Return whether a step lies in the stage whose replay is adjusted."""
        if self.guard is None or step >= schedule.num_steps:
            return False
        return schedule.stages[schedule.stage_of_step(step)].name == self.guard.stage

    def evaluate(
        self,
        trainer: Trainer,
        pl_module: SFTModule,
        step: int,
        num_items: Mapping[str, int] | None = None,
        selection: Collection[str] | None = None,
    ) -> Evaluation:
        """Evaluate a model and hand the evaluation to every callback that listens.

        Listeners have ``on_evaluation_start(trainer, pl_module)``, ``on_evaluation_part(trainer,
        pl_module, line)``, called with a line for people as each part begins, and
        ``on_evaluation_end(trainer, pl_module, evaluation)``.

        Args:
            trainer: Its callbacks listen, its precision is that of forward passes.
            pl_module: Holds the model.
            step: Optimizer steps taken.
            num_items: How many reported items to use, by benchmark; all by default.
            selection: Benchmarks whose selection items to use; all by default.
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
                pl_module.model,
                step,
                num_items=num_items,
                selection=selection,
                losses=pl_module.held_out_losses,
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
        full = {0, *schedule.boundaries}
        num_full = len(full)
        guarded = [at for at in due if at not in full and self._is_guarded(at, schedule)]
        sizes = {name: len(b.items()) for name, b in self.suite.benchmarks.items()}
        reported, chosen = self.suite.num_items("report"), self.suite.num_items("selection")
        read = self.guard.benchmarks() if self.guard else set()
        pace = Pace(
            evaluation_s=self.full_s,
            step_s=(time.perf_counter() - began) / (step - since),
            num_steps=schedule.num_steps,
            num_full=num_full,
            num_between=len(due) - num_full,
            report_share=sum(reported.values()) / max(sum(sizes.values()), 1),
            guarded=guarded_evaluations(sizes, {name: chosen[name] for name in read}, len(guarded)),
        )
        counts = items_between(reported, self.suite.budget, pace)
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
            "engines": distributed.gather(self.suite.engine.state_dict()),  # of every rank
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evaluated_step = state_dict["evaluated_step"]
        self.seconds = state_dict["seconds"]
        self.full_s = state_dict["full_s"]
        self.items_between = state_dict["items_between"]
        engines = state_dict["engines"]
        # A rank keeps the answers to its own items, which are others on another number of ranks.
        if len(engines) == distributed.world_size():
            self.suite.engine.load_state_dict(engines[distributed.rank()])


def _call(trainer: Trainer, hook: str, *arguments: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (listener := getattr(callback, hook, None)) is not None:
            listener(trainer, *arguments)
