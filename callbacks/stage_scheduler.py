"""Switch to the next stage in the middle of a run and apply its hand-over policy."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.errors import RequestError
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.hand_over import HandOvers
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule


class StageScheduler(Callback):
    """Train the stages of a ``StagedDataModule`` one after the other in one ``Trainer.fit``.

    A Lightning epoch is one pass over the active stage's mixture, or a part of one if the rest
    may be replanned. When a stage's last pass ends, the next stage's data module becomes the active
    one. Before its first step, and after the evaluation at the boundary, its hand-over policy is
    applied: this callback must come after ``InLoopEvaluation``. The learning rate is a function of
    the optimizer step and needs no hand-over.
    """

    def __init__(self) -> None:
        self.schedule: Schedule | None = None
        self.next_pass = 0  # the pass whose batches are requested next
        self.trained_stage = -1  # the last stage whose hand-over is done
        self.hand_overs: HandOvers | None = None
        self._data: StagedDataModule | None = None
        self._trainer: Trainer | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, unknown to its types
        if not isinstance(data, StagedDataModule) or not isinstance(pl_module, SFTModule):
            raise TypeError("StageScheduler schedules a StagedDataModule for an SFTModule.")
        every: int = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        if every != 1:
            raise RequestError(
                "trainer.reload_dataloaders_every_n_epochs must be 1, or the next stage's batches "
                f"are never requested, got {every}."
            )
        if trainer.max_epochs not in (None, -1):
            raise RequestError(
                f"trainer.max_epochs follows from the stages, got {trainer.max_epochs}; "
                "set data.stages.*.epochs."
            )
        self._data, self._trainer = data, trainer
        policies = {name: settings.start for name, settings in data.stages.items()}
        self.hand_overs = HandOvers(policies, pl_module.seed)
        self.follow_plan()
        self._activate()

    def follow_plan(self) -> None:
        """Update steps, passes and rates from the current plan.

        A plan may change during a run, in passes that have not begun.
        """
        if self._data is None or self._trainer is None:
            raise RuntimeError("StageScheduler is used before its setup.")
        module = self._trainer.lightning_module
        assert isinstance(module, SFTModule)  # checked in setup
        self.schedule = module.schedule = self._data.schedule
        self._trainer.fit_loop.max_epochs = self.schedule.num_passes

    def _activate(self) -> None:
        if self._data is None or self.schedule is None:
            raise RuntimeError("StageScheduler is used before its setup.")
        # After the last pass no batches are requested; its stage stays active.
        last = self.schedule.num_passes - 1
        self._data.activate(*self.schedule.stage_of_pass(min(self.next_pass, last)))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule is None or self.hand_overs is None:
            raise RuntimeError("StageScheduler is used before its setup.")
        self.hand_overs.check(num_ended=max(0, self.trained_stage))
        # A checkpoint holds the rate of its own run's next step; later stages may have been edited
        # since, and a fork has others.
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.lr(trainer.global_step)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._data is None or self.hand_overs is None:
            raise RuntimeError("StageScheduler is used before its setup.")
        index = self._data.active_index
        if index == self.trained_stage:
            return
        if index > 0:
            name = list(self._data.stages)[index]
            self.hand_overs.start(name, pl_module.model, trainer.optimizers)
        self.trained_stage = index

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Also after the last pass: a checkpoint must not depend on the stages to come.
        self.next_pass += 1
        self._activate()

    @override
    def state_dict(self) -> dict[str, Any]:
        hand_overs = {} if self.hand_overs is None else self.hand_overs.state_dict()
        return {
            "next_pass": self.next_pass,
            "trained_stage": self.trained_stage,
            "hand_overs": hand_overs,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Called before optimizers are rebuilt and before the first batch is requested; also when a
        # checkpoint is only scored, and no stage becomes active.
        self.next_pass = state_dict["next_pass"]
        self.trained_stage = state_dict["trained_stage"]
        if self._data is not None and self.hand_overs is not None:
            self.hand_overs.load_state_dict(state_dict["hand_overs"])
            self._activate()
