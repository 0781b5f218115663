"""The LightningModule: loss on target tokens, held-out losses, the optimizer."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from typing_extensions import override

from sft_lab import distributed
from sft_lab.config.ranges import NonNegativeFloat, Seed
from sft_lab.data.corpus import Corpus
from sft_lab.errors import RequestError
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.metrics.token_loss import TokenLoss
from sft_lab.model.adapter_config import Adapters, Lora, Peft, adapters_of, add_adapters
from sft_lab.model.adapters import add_frozen_adapters, kept_weights
from sft_lab.model.fused_lora import fuse_lora
from sft_lab.model.kernels import check_compiler, compile_layers
from sft_lab.model.logits import check_adapters_act, check_logits, check_packing
from sft_lab.model.qlora import Quantization, compute_dtype, load_base, plain_causal_lm
from sft_lab.model.sharding import in_step, mesh_of_ranks, shard
from sft_lab.model.unquantized import keep_dequantized
from sft_lab.paths import pinned
from sft_lab.training.batches import Batch
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.loss import read_targets, token_losses
from sft_lab.training.schedule import Schedule
from sft_lab.training.sharded import Sharded


def check_trainable(
    quantization: Quantization, adapters: Adapters | None, dequantize: str = "each_step"
) -> None:
    """Check that the model is trainable: adapters that suit its base, or an unquantized base.

    Raises:
        RequestError: If it is not.
    """
    if isinstance(adapters, Peft):
        adapters.check_quantization(quantization)
    if adapters is None and quantization in ("nf4", "int8"):
        raise RequestError(
            f"model.lora is null, but a {quantization} base cannot be trained in full; "
            "set model.quantization to bf16 or fp32, or give model.lora."
        )
    if dequantize == "cached" and quantization != "nf4":
        raise RequestError(
            f"model.dequantize: cached is for a base in nf4, and model.quantization is "
            f"{quantization}; leave it out."
        )


class SFTModule(LightningModule):
    """A causal language model under supervised fine-tuning.

    Args:
        base: A folder in Hugging Face format, ``world://base``, or a hub name.
        revision: Branch, tag or commit of a base on the hub and of its tokenizer; by default the
            main branch.
        evaluation: What is measured; its own config group.
        quantization: ``nf4`` with double quantisation, ``int8``, or an unquantised ``bf16`` or
            ``fp32``.
        lora: The adapters, if they are LoRA; null, without ``peft``, trains an unquantised base in
            full.
        peft: The adapters in place of ``lora``, by the ``class_path`` of a config class of PEFT and
            its ``init_args``.
        gradient_checkpointing: Trade a second forward for the memory of activations.
        attn_implementation: ``sdpa``, ``eager``, ``flex_attention``, ``flash_attention_2``,
            ``flash_attention_3`` or a kernel of the hub (``kernels-community/...``); None for
            transformers' choice.
        torch_compile: Compile the decoder's layers for training; sums are rounded differently, and
            dropout draws other values.
        dequantize: ``each_step`` dequantises the weights of an ``nf4`` base for every product;
            ``cached`` keeps them, which takes the memory of an unquantised base besides; on CUDA,
            small batches are then rounded differently.
        fused_lora: Compute plain LoRA adapters by one function with a backward pass of its own,
            which takes fewer passes over memory; sums are rounded differently.
        optimizer: ``paged_adamw_8bit`` needs CUDA.
        weight_decay: AdamW's decoupled weight decay.
        seed: Seed of the adapters' first values.

    Raises:
        RequestError: If the arguments contradict each other or the machine.
    """

    def __init__(
        self,
        base: str,
        evaluation: EvaluationSuite,
        revision: str | None = None,
        quantization: Quantization = "nf4",
        lora: Lora | None = Lora(),
        peft: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        torch_compile: bool = False,
        dequantize: Literal["each_step", "cached"] = "each_step",
        fused_lora: bool = False,
        optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw",
        weight_decay: NonNegativeFloat = 0.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        adapters = adapters_of(lora, peft)
        check_trainable(quantization, adapters, dequantize)
        if not isinstance(adapters, Lora) and evaluation.engine.needs_adapters:
            raise RequestError(
                f"model.lora is null, and evaluation.engine {evaluation.engine.name} hands LoRA "
                "adapters to its server, and no other weights; set evaluation.engine to native, or "
                "give model.lora."
            )
        if optimizer == "paged_adamw_8bit" and not torch.cuda.is_available():
            raise RequestError(
                "model.optimizer paged_adamw_8bit needs CUDA, found none; set it to adamw."
            )
        self.base = pinned(base, revision)
        self.evaluation = evaluation
        self.quantization = quantization
        self.adapters = adapters
        check_compiler(torch_compile)
        self.gradient_checkpointing = gradient_checkpointing
        self.attn_implementation = attn_implementation
        self.torch_compile = torch_compile
        self.dequantize = dequantize
        self.fused_lora = fused_lora
        self.optimizer_name = optimizer
        self.weight_decay = weight_decay
        self.seed = seed
        self.schedule: Schedule | None = None  # set by StageScheduler before the optimizer is built
        # A checkpoint holds trained parameters only, the base comes from where it was loaded.
        self.strict_loading = False

    @override
    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        precision, strategy = str(self.trainer.precision), self.trainer.strategy
        self.load(precision, packed_by=self._data.packed_by, strategy=strategy)

    def load(
        self, precision: str, *, packed_by: str | None, strategy: Strategy | None = None
    ) -> None:
        """Load the base and add the adapters.

        Args:
            precision: The Trainer's.
            packed_by: The key by which rows share a sequence, for which the architecture must be
                suited; None where each has its own.
            strategy: The Trainer's; if it is ``Sharded``, the model is sharded.

        Raises:
            RequestError: If the base cannot be trained here.
        """
        if not isinstance(strategy, Sharded):
            self.model = self._loaded(precision, partial(_check, packed_by=packed_by))
            return
        mesh = mesh_of_ranks(strategy.root_device)
        with distributed.in_turn():  # the memory of a machine holds the base once
            model = self._loaded(precision, on_cpu=True)
            shard(strategy.precision_plugin.convert_module(model), mesh)
        _check(plain_causal_lm(model), packed_by)  # no device need hold it whole
        plain_causal_lm(model).reshard()
        self.model = model

    def _loaded(
        self,
        precision: str,
        check: Callable[[Any], None] = lambda causal_lm: None,
        *,
        on_cpu: bool = False,
    ) -> Any:
        """Return the whole model, whose base has been checked before it gets adapters."""
        dtype = compute_dtype(precision)
        model = load_base(
            self.base, self.quantization, dtype, self.attn_implementation, on_cpu=on_cpu
        )
        check(model)
        if self.adapters is not None:
            model = add_adapters(model, self.adapters, self.seed)
            if isinstance(self.adapters, Peft):
                check_adapters_act(model)
        if self.gradient_checkpointing:
            plain_causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
        if self.dequantize == "cached":
            keep_dequantized(model)
        if self.fused_lora:
            fuse_lora(model)
        if self.torch_compile:
            compile_layers(plain_causal_lm(model))
        return model

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # The rate is 1 here, so that the schedule's value is the rate of every step, whatever the
        # stage.
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "paged_adamw_8bit":
            import bitsandbytes

            optimizer = bitsandbytes.optim.PagedAdamW8bit(
                trained, lr=1.0, weight_decay=self.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _lr(self, step: int) -> float:
        # Read at every step: the schedule may change during the run.
        if self.schedule is None:
            raise RuntimeError(
                "StageScheduler has not set the schedule; it must be among the callbacks."
            )
        return self.schedule.lr(step)

    @property
    def _data(self) -> StagedDataModule:
        data: StagedDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def _corpus(self) -> Corpus:
        return self._data.corpus

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss to step on, and what the log is made from.

        Returns:
            ``loss`` float ``[]``; ``nll`` float64 ``[S]`` and ``target_tokens`` int64 ``[S]``,
            summed over this micro-batch by source.
        """
        terms = self._data.active_settings.loss
        sources = list(self._corpus.sources)
        tokens = read_targets(self.model, batch, sources, terms)
        losses = token_losses(tokens, terms)
        # Lightning divides by accumulate_grad_batches, DDP and FSDP by the number of ranks. What is
        # wanted is the mean over all target tokens of the window, not a mean of means: lightning
        # issue 20350.
        num_parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        loss = losses.sum() / batch["window_target_tokens"] * num_parts
        nll, target_tokens = tokens.by_source()
        return {"loss": loss, "nll": nll, "target_tokens": target_tokens}

    def token_nll(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return negative log-likelihood and source of every target token, both ``[N]``."""
        tokens = read_targets(self.model, batch, list(self._corpus.sources))
        return tokens.nll, tokens.source_ids

    def held_out_losses(self) -> dict[str, float]:
        """Return ``val_loss/<source>`` of every source with held-out rows, in eval mode."""
        losses: dict[str, float] = {}
        for held_out in self._data.held_out:
            loss = TokenLoss().to(self.device)
            with in_step(self.model):
                # Each rank reads some of the batches; the metric adds up over ranks.
                for index in range(distributed.rank(), len(held_out), distributed.world_size()):
                    batch = self.transfer_batch_to_device(held_out[index], self.device, 0)
                    nll, _ = self.token_nll(batch)
                    loss.update(nll.double().sum(), len(nll))
            if len(held_out):
                losses[f"val_loss/{held_out.source}"] = loss.compute().item()
        return losses

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = kept_weights(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        add_frozen_adapters(self.model, checkpoint["state_dict"])


def _check(causal_lm: Any, packed_by: str | None) -> None:
    check_logits(causal_lm)
    if packed_by is not None:
        check_packing(causal_lm, packed_by)
