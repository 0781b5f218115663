"""Log training loss by source, learning rate, speed and progress."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.callbacks.in_loop_evaluation import InLoopEvaluation
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import progress


class TrainingLog(Callback):
    """Log every ``trainer.log_every_n_steps`` optimizer steps, and at the last step of a stage.

    ``train_loss/all`` and ``train_loss/<source>`` are means over the target tokens since the
    previous point, in nats, never across stages; a source without any gets no point.

    Args:
        sources: Names of the sources, in the order of their ids.
        evaluation: Measures the time spent in evaluation.
    """

    def __init__(self, sources: list[str], evaluation: InLoopEvaluation) -> None:
        self.sources = sources
        self.evaluation = evaluation
        self.loss = float("nan")
        self.tokens_per_s = float("nan")
        self._reset()
        self._logged_step = 0
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        self._evaluated_s = 0.0

    def _reset(self) -> None:
        self.nll = torch.zeros(len(self.sources), dtype=torch.float64)
        self.target_tokens = torch.zeros(len(self.sources), dtype=torch.int64)

    @property
    def seconds(self) -> float:
        """Return the wall time of training and evaluation, summed over a run's processes."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def trained_s(self) -> float:
        """Return the seconds that this process has trained, evaluations left out."""
        return time.perf_counter() - self._started - (self.evaluation.seconds - self._evaluated_s)

    @property
    def recent_loss(self) -> float:
        """Return the loss since the last point, or of it where nothing has been trained since."""
        tokens = self.target_tokens.sum()
        return (self.nll.sum() / tokens).item() if tokens else self.loss

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()
        self._evaluated_s = self.evaluation.seconds  # before this process
        self._mark(trainer)

    def _mark(self, trainer: Trainer) -> None:
        self._mark_seconds = self.seconds - self.evaluation.seconds
        self._mark_step = trainer.global_step

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
            raise TypeError("TrainingLog logs an SFTModule with a schedule.")
        # Sums stay on the device until they are logged, so that it need not wait.
        self.nll = self.nll.to(outputs["nll"].device) + outputs["nll"].detach()
        self.target_tokens = self.target_tokens.to(self.nll.device) + outputs["target_tokens"]
        step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_boundary = step in pl_module.schedule.boundaries
        if step == self._logged_step or (step % every and not is_boundary):
            return
        schedule = pl_module.schedule
        metrics = self._losses() | progress(schedule, step)
        # The rate of the step just taken; the schedule counts steps from 0.
        metrics["lr"] = schedule.lr(step - 1)
        tokens = schedule.seen(step).tokens - schedule.seen(self._mark_step).tokens
        self.tokens_per_s = tokens / (self.seconds - self.evaluation.seconds - self._mark_seconds)
        metrics["speed/tokens_per_s"] = self.tokens_per_s
        metrics["time/eval_share"] = self.evaluation.seconds / self.seconds
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        self._reset()
        self._logged_step = step
        self._mark(trainer)

    def _losses(self) -> dict[str, float]:
        self.loss = (self.nll.sum() / self.target_tokens.sum()).item()
        by_source = {
            f"train_loss/{source}": (nll / count).item()
            for source, nll, count in zip(self.sources, self.nll, self.target_tokens, strict=True)
            if count
        }
        return {"train_loss/all": self.loss, **by_source}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "nll": self.nll.cpu(),
            "target_tokens": self.target_tokens.cpu(),
            "logged_step": self._logged_step,
            "seconds": self.seconds,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.nll = state_dict["nll"]
        self.target_tokens = state_dict["target_tokens"]
        self._logged_step = state_dict["logged_step"]
        self._seconds_before = state_dict["seconds"]
