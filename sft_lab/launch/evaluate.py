"""Evaluate a checkpoint outside of training, as ``validate`` and ``test`` do."""

from typing import Any

import torch
from lightning import Callback

from sft_lab.callbacks.in_loop_evaluation import InLoopEvaluation
from sft_lab.errors import interruptible
from sft_lab.launch.build import Run
from sft_lab.model.sharding import is_sharded, load_weights


def evaluate_checkpoint(run: Run, checkpoint: dict[str, Any] | None) -> None:
    """Evaluate once; callbacks log and record the evaluation as they do in ``fit``.

    ``validate`` measures selection items and ``test`` report items, each all of them; without a
    split both measure all items.

    Args:
        run: A run whose data are set up, and whose model is not loaded yet.
        checkpoint: The checkpoint; the bare base if None.
    """
    trainer, module, stage = run.trainer, run.module, run.config.command
    trainer.datamodule = run.data  # type: ignore[attr-defined]
    module.trainer = trainer
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    (evaluation,) = (found for found in callbacks if isinstance(found, InLoopEvaluation))
    step = 0
    try:
        for callback in callbacks:
            callback.setup(trainer, module, stage)
        with trainer.init_module():
            precision = str(trainer.precision)
            module.load(precision, packed_by=run.data.packed_by, strategy=trainer.strategy)
        if checkpoint is not None:
            module.on_load_checkpoint(checkpoint)
            if is_sharded(module.model):
                load_weights(module, checkpoint["state_dict"])
            else:
                module.load_state_dict(checkpoint["state_dict"], strict=False)
            evaluation.load_state_dict(checkpoint["callbacks"][evaluation.state_key])
            step = checkpoint["global_step"]
        trainer.precision_plugin.convert_module(module).to(trainer.strategy.root_device)
        # FSDP gathers weights in place, which inference mode forbids.
        no_gradients = torch.no_grad if is_sharded(module.model) else torch.inference_mode
        with interruptible(), no_gradients():
            suite = evaluation.suite
            if suite.split is not None and stage == "validate":
                evaluation.evaluate(trainer, module, step, dict.fromkeys(suite.benchmarks, 0))
            else:
                evaluation.evaluate(trainer, module, step, selection=())
    finally:
        for callback in callbacks:
            callback.teardown(trainer, module, stage)
