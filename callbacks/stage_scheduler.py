"""Switches the active data module in the middle of a run and hands the optimizer over."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.errors import RequestError
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule


class StageScheduler(Callback):
    """Trains the stages of a ``StagedDataModule`` one after the other in one ``Trainer.fit``.

    A Lightning epoch is one pass over the active stage's mixture, or a part of one where a guard
    may plan the rest anew. When a stage's last pass ends,
    the next stage's data module becomes the active one; before its first step the optimizer's state
    is dropped where the stage says ``optimizer: fresh``. Adapters, and the learning rate's course,
    which is a function of the optimizer step, carry on by themselves.
    """

    def __init__(self) -> None:
        self.schedule: Schedule | None = None
        self.next_pass = 0  # the pass whose batches are asked for next
        self.trained_stage = -1  # the stage whose hand-over is done
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
                f"are never asked for, got {every}."
            )
        if trainer.max_epochs not in (None, -1):
            raise RequestError(
                f"trainer.max_epochs follows from the stages, got {trainer.max_epochs}; "
                "set data.stages.*.epochs."
            )
        self._data, self._trainer = data, trainer
        self.follow_plan()
        self._activate()

    def follow_plan(self) -> None:
        """Take steps, passes and rates from the plan as it stands now.

        A plan may change while the run goes on, in passes that have not begun.
        """
        if self._data is None or self._trainer is None:
            raise RuntimeError("StageScheduler is used before its setup.")
        module = self._trainer.lightning_module
        assert isinstance(module, SFTModule)  # setup has looked
        self.schedule = module.schedule = self._data.schedule
        self._trainer.fit_loop.max_epochs = self.schedule.num_passes

    def _activate(self) -> None:
        if self._data is None or self.schedule is None:
            raise RuntimeError("StageScheduler is used before its setup.")
        # Behind the last pass nothing is asked for; its stage stays the active one.
        last = self.schedule.num_passes - 1
        self._data.activate(*self.schedule.stage_of_pass(min(self.next_pass, last)))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint holds the rate that its own run would have gone on with; stages behind it
        # may have been edited since, or be those of another run.
        if self.schedule is not None:
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.schedule.lr(trainer.global_step)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._data is None:
            raise RuntimeError("StageScheduler is used before its setup.")
        index = self._data.active_index
        if index == self.trained_stage:
            return
        self.trained_stage = index
        if list(self._data.stages.values())[index].optimizer == "fresh":
            for optimizer in trainer.optimizers:
                # An optimizer without state makes it anew at its next step, as a new one would.
                optimizer.state.clear()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Also behind the last pass: what a checkpoint says must not depend on the stages to come.
        self.next_pass += 1
        self._activate()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"next_pass": self.next_pass, "trained_stage": self.trained_stage}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Called before optimizers are rebuilt and before the first batch is asked for; also where a
        # checkpoint is only scored, and there is no stage to activate.
        self.next_pass = state_dict["next_pass"]
        self.trained_stage = state_dict["trained_stage"]
        if self._data is not None:
            self._activate()
