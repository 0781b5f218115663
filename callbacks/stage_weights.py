"""File the trained weights at the end of every stage."""

import tempfile
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab import distributed
from sft_lab.model.qlora import save_trained
from sft_lab.model.sharding import whole_weights
from sft_lab.runs.logger import run_logger
from sft_lab.training.module import SFTModule


class StageWeights(Callback):
    """Files adapters, or the whole model if it has none, as ``stages/<name>`` of the run.

    Every rank has this callback: the first one files what all of them hold.
    """

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
            return
        for scheduled in pl_module.schedule.stages:
            if scheduled.end_step == trainer.global_step:
                weights = whole_weights(pl_module.model)
                if distributed.is_first():
                    logger = run_logger(trainer)
                    with tempfile.TemporaryDirectory() as folder:
                        save_trained(pl_module.model, Path(folder), weights)
                        logger.experiment.log_artifacts(
                            logger.run_id, folder, f"stages/{scheduled.name}"
                        )
