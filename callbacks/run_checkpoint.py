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

from sft_lab import distributed
from sft_lab.config.ranges import PositiveInt
from sft_lab.errors import Interrupted, check_interrupted, handle_signals
from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.runs.checkpoint import RunStamp, last_checkpoint, link_or_copy, stage_checkpoint
from sft_lab.runs.logger import run_logger
from sft_lab.training.module import SFTModule

_WINDOW = "micro_batches_per_window"


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
        self._rng: list[dict[str, Any]] = []  # of every rank

    def path(self, trainer: Trainer) -> Path:
        """Return the checkpoint's file."""
        return last_checkpoint(self.dirpath, run_logger(trainer).run_id)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank = trainer.global_rank
        if rank < len(self._rng):
            torch.set_rng_state(self._rng[rank]["cpu"])
            if self._rng[rank]["cuda"]:
                torch.cuda.set_rng_state_all(self._rng[rank]["cuda"])
        elif rank > 0 and isinstance(pl_module, SFTModule):
            # Ranks must not drop out the same neurons.
            torch.manual_seed(pl_module.seed + rank + trainer.global_step * trainer.world_size)
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
        self._agree_on_signal()
        if self._is_due(trainer.global_step, pl_module) or self._signal is not None:
            self._save(trainer)
        self._check_signal()

    def _agree_on_signal(self) -> None:
        """Take over a signal that another rank has received, so that all stop after one step."""
        self._signal = distributed.largest(self._signal or 0) or None

    def _is_due(self, step: int, pl_module: LightningModule) -> bool:
        if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
            raise TypeError("RunCheckpoint saves an SFTModule with a schedule.")
        return step % self.every_n_steps == 0 or pl_module.evaluation.is_due(
            step, pl_module.schedule.boundaries
        )

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before the save too: one that waits for a server gives up only if the first rank knows.
        self._agree_on_signal()
        self._save(trainer, _ended_stage(trainer, pl_module) if self.keep_stages else None)
        self._agree_on_signal()
        self._check_signal()

    def _save(self, trainer: Trainer, ended_stage: str | None = None) -> None:
        # A resumed run logs only what comes after its checkpoint. At a stop with the server away
        # the one before it is kept, from which resuming is as exact. Only the first rank has points
        # to send, and all must save or none.
        logger = run_logger(trainer)
        if not distributed.by_first(lambda: logger.flush(lambda: self._signal is not None)):
            return
        if ended_stage is None:
            trainer.save_checkpoint(self.path(trainer))
        else:
            # Before `last.ckpt`: a run resumed from that does not reach this stage's end again.
            kept = stage_checkpoint(self.dirpath, run_logger(trainer).run_id, ended_stage)
            trainer.save_checkpoint(kept)
            if trainer.is_global_zero:
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
        checkpoint[_WINDOW] = trainer.accumulate_grad_batches

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        count_batches_of_rank(checkpoint, trainer.accumulate_grad_batches)

    @override
    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"rng": distributed.gather({"cpu": torch.get_rng_state(), "cuda": cuda})}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rng = state_dict["rng"]


def count_batches_of_rank(checkpoint: dict[str, Any], per_window: int) -> None:
    """Count the batches of a pass in a checkpoint for another number of devices.

    Args:
        checkpoint: A run's checkpoint; modified in place.
        per_window: Micro-batches of a window that a rank now trains on.
    """
    old = checkpoint[_WINDOW]
    if old == per_window:
        return
    loop = checkpoint["loops"]["fit_loop"]
    for state in loop["state_dict"].get("combined_loader", []):
        state["position"] = -(-state["position"] // old) * per_window
    current = loop["epoch_loop.batch_progress"]["current"]
    ready = -(-current["ready"] // old) * per_window
    # The last batch of a checkpoint is completed only when the run resumes.
    current |= {key: ready - (current["ready"] - count) for key, count in current.items()}
    checkpoint[_WINDOW] = per_window


def _ended_stage(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Return the stage that ended with the last step, None in the middle of one."""
    if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
        raise TypeError("RunCheckpoint saves an SFTModule with a schedule.")
    ended = (s.name for s in pl_module.schedule.stages if s.end_step == trainer.global_step)
    return next(ended, None)
