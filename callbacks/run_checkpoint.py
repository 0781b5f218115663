"""Write the checkpoints a run resumes from; end it at a signal without losing a step."""

import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from sft_lab.config.ranges import PositiveInt
from sft_lab.errors import Interrupted, check_interrupted, handle_signals
from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.runs.checkpoint import RunStamp, last_checkpoint, link_or_copy, stage_checkpoint
from sft_lab.runs.logger import run_logger
from sft_lab.training.module import SFTModule


class RunCheckpoint(Checkpoint):
    """Write ``DIRPATH/<run id>/last.ckpt``: adapters, optimizer, loop and callback states.

    It is written every n optimizer steps, before every evaluation but the last, and at the end of
    every pass, and replaced atomically. Lightning calls checkpoint callbacks after all others.
    The checkpoint at a stage's end is also kept as ``DIRPATH/<run id>/stages/<stage name>.ckpt``,
    from which ``fit --from`` starts other runs. Only the last stage's contains the evaluation at
    its end; a run that starts from an earlier stage evaluates there again.

    Args:
        every_n_steps: Optimizer steps between checkpoints.
        dirpath: Folder of all runs' checkpoints.
        keep_stages: Whether the checkpoint at each stage's end is kept.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt = 50,
        dirpath: Path = Path("mlruns/checkpoints"),
        keep_stages: bool = True,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.dirpath = dirpath
        self.keep_stages = keep_stages
        self.stamp: RunStamp | None = None
        self.saved_step = -1
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._evaluating = False
        self._rng: dict[str, Any] | None = None

    def path(self, trainer: Trainer) -> Path:
        """Return the checkpoint's file."""
        return last_checkpoint(self.dirpath, run_logger(trainer).run_id)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if self._rng["cuda"]:
                torch.cuda.set_rng_state_all(self._rng["cuda"])
        check_interrupted()
        # In place of Lightning's, which stop at the next micro-batch and lose the window.
        self._handlers = handle_signals(self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_second, self._signal = self._signal is not None, number
        if is_second or self._evaluating:
            # During an evaluation the weights are those of the checkpoint written before it.
            raise Interrupted(number)

    def _check_signal(self) -> None:
        """End the run if a signal waits; a destructor may have swallowed what it raised."""
        if self._signal is not None:
            raise Interrupted(self._signal)

    def on_evaluation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal interrupt from here on; end the run if one came before."""
        self._evaluating = True
        self._check_signal()

    def on_evaluation_part(self, trainer: Trainer, pl_module: LightningModule, line: str) -> None:
        """End the run if a signal was swallowed."""
        self._check_signal()

    def on_evaluation_end(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation
    ) -> None:
        """Make a signal wait for the end of a window again."""
        self._evaluating = False
        self._check_signal()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        is_window_end = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # The last window of a pass is saved after the pass, where Lightning resumes cleanly.
        if trainer.is_last_batch or not is_window_end:
            return
        if self._is_due(trainer.global_step, pl_module) or self._signal is not None:
            self._save(trainer)
        self._check_signal()

    def _is_due(self, step: int, pl_module: LightningModule) -> bool:
        if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
            raise TypeError("RunCheckpoint saves an SFTModule with a schedule.")
        return step % self.every_n_steps == 0 or pl_module.evaluation.is_due(
            step, pl_module.schedule.boundaries
        )

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, _ended_stage(trainer, pl_module) if self.keep_stages else None)
        self._check_signal()

    def _save(self, trainer: Trainer, ended_stage: str | None = None) -> None:
        # A resumed run logs only what comes after its checkpoint. At a stop with the server away
        # the one before it is kept, from which resuming is as exact.
        if not run_logger(trainer).flush(lambda: self._signal is not None):
            return
        if ended_stage is None:
            trainer.save_checkpoint(self.path(trainer))
        else:
            # Before `last.ckpt`: a run resumed from that does not reach this stage's end again.
            kept = stage_checkpoint(self.dirpath, run_logger(trainer).run_id, ended_stage)
            trainer.save_checkpoint(kept)
            link_or_copy(kept, self.path(trainer))
        self.saved_step = trainer.global_step

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.stamp is not None:
            points = run_logger(trainer).num_points
            checkpoint["sft_lab"] = replace(self.stamp, points=points).as_dict()

    @override
    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"rng": {"cpu": torch.get_rng_state(), "cuda": cuda}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rng = state_dict["rng"]


def _ended_stage(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Return the stage that ended with the last step, None in the middle of one."""
    if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
        raise TypeError("RunCheckpoint saves an SFTModule with a schedule.")
    ended = (s.name for s in pl_module.schedule.stages if s.end_step == trainer.global_step)
    return next(ended, None)
