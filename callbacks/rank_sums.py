"""Add up over ranks what a window's log and checks are made from."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from sft_lab import distributed


class RankSums(Callback):
    """Give the callbacks after it the sums of a window over all ranks, with its last micro-batch.

    Until then they get zeros, so that ranks wait for each other once per window. Only a run on
    several devices has this callback.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for key in ("nll", "target_tokens"):
            found = outputs[key].detach().cpu()
            nothing = torch.zeros_like(found)
            counts = bool(batch["window_target_tokens"].isfinite())
            self._sums[key] = self._sums.get(key, nothing) + (found if counts else nothing)
            outputs[key] = nothing
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            outputs |= {key: distributed.total(sums) for key, sums in self._sums.items()}
            self._sums = {}
