"""End a run whose loss or weights are not finite, and warn of one that learns nothing."""

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from sft_lab.callbacks.run_checkpoint import RunCheckpoint
from sft_lab.errors import RunError
from sft_lab.training.learning import LossWatch, is_finite, is_untrained, vocabulary_size
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule

_log = logging.getLogger(__name__)
_FIRST_STEPS = 20


class LearningCheck(Callback):
    """Check the loss of every step, and the weights early in each stage and in every checkpoint.

    It must come before the callbacks that log, so that a run ends before it records such a loss.

    Args:
        sources: Names of the sources, in the order of their ids.
        checkpoint: Knows the last checkpoint, whose weights were finite.
    """

    def __init__(self, sources: list[str], checkpoint: RunCheckpoint) -> None:
        self.sources = sources
        self.checkpoint = checkpoint
        self._watch: LossWatch | None = None
        self._warned: set[tuple[str, str]] = set()
        self._counts: list[tuple[Tensor, Tensor]] = []  # of this window, on the training device

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch = LossWatch(vocabulary_size(pl_module.model))

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
            raise TypeError("LearningCheck checks an SFTModule with a schedule.")
        assert self._watch is not None  # training has started
        self._counts.append((outputs["nll"].detach(), outputs["target_tokens"]))
        is_window_end = (
            trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        )
        if not is_window_end:
            return
        step = trainer.global_step
        # The device is waited for once a step.
        nll, tokens = (torch.stack(each).sum(0).cpu() for each in zip(*self._counts, strict=True))
        self._counts = []
        if not torch.isfinite(nll).all():
            losses = zip(self.sources, nll, strict=True)
            wrong = [name for name, loss in losses if not loss.isfinite()]
            self._end(trainer, pl_module.schedule, step, f"the loss of {', '.join(wrong)}")
        what = self._watch.see((nll.sum() / tokens.sum()).item()) if tokens.any() else None
        stage = pl_module.schedule.stages[pl_module.schedule.stage_of_step(step - 1)]
        if what is not None:
            self._warn(pl_module.schedule, step, what)
        if step - stage.first_step == min(_FIRST_STEPS, stage.num_steps):
            if not is_finite(pl_module.model):
                self._end(trainer, pl_module.schedule, step, "a trained weight")
            if is_untrained(pl_module.model):
                what = "the adapters have learned nothing, their B is still 0"
                self._warn(pl_module.schedule, step, what)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, SFTModule)  # checked at every step
        assert pl_module.schedule is not None
        if not is_finite(pl_module.model):
            self._end(trainer, pl_module.schedule, trainer.global_step, "a trained weight")

    def _end(self, trainer: Trainer, schedule: Schedule, step: int, what: str) -> None:
        path = self.checkpoint.path(trainer)
        exists = path.exists()
        last = f"the last good checkpoint is {path}" if exists else "there is no checkpoint yet"
        raise RunError(
            f"{what} is not a finite number at step {step} {_where(schedule, step)}; {last}.",
            can_resume=False,  # it would come to the same step again
        )

    def _warn(self, schedule: Schedule, step: int, what: str) -> None:
        stage = schedule.stages[schedule.stage_of_step(step - 1)].name
        if (stage, what.split(",")[0]) not in self._warned:
            self._warned.add((stage, what.split(",")[0]))
            _log.warning("step %d: %s %s.", step, what, _where(schedule, step))


def _where(schedule: Schedule, step: int) -> str:
    stage = schedule.stages[schedule.stage_of_step(step - 1)].name
    return (
        f"(stage '{stage}', lr {schedule.lr(step - 1):.3g}); check data.stages.{stage}.lr and the "
        "stage's rows (sft-lab inspect)"
    )
