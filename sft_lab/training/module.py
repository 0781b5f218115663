"""The LightningModule: loss on target tokens, the in-loop evaluation, the optimizer."""

from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, cast
from uuid import uuid4

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from typing_extensions import override

from sft_lab.data.corpus import Corpus
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Item
from sft_lab.evaluation.benchmarks.harness.requests import HarnessModel
from sft_lab.evaluation.benchmarks.harness.task import HarnessTask
from sft_lab.evaluation.evaluator import Answer, Evaluation
from sft_lab.evaluation.generation import NativeEngine, VllmEngine, make_engine
from sft_lab.evaluation.prompts import PromptBatch, prompt_ids
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.metrics.token_loss import TokenLoss
from sft_lab.model.adapters import add_frozen_adapters, kept_weights
from sft_lab.model.logits import check_head, check_packing
from sft_lab.model.qlora import (
    Lora,
    Quantization,
    add_lora,
    compute_dtype,
    load_base,
    plain_causal_lm,
)
from sft_lab.model.unquantized import evaluation_weights
from sft_lab.training.batches import Batch
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.loss import read_targets, token_losses
from sft_lab.training.schedule import Schedule


def check_trainable(quantization: Quantization, lora: Any, engine: str) -> None:
    """Look that what is trained can be: adapters, or without them the whole model.

    Raises:
        RequestError: If there are no adapters, and the base or the engine needs them.
    """
    if lora is not None:
        return
    if quantization in ("nf4", "int8"):
        raise RequestError(
            f"model.lora is null, but a {quantization} base cannot be trained in full; "
            "set model.quantization to bf16 or fp32, or give model.lora."
        )
    if engine == "vllm":
        raise RequestError(
            "model.lora is null, and evaluation.engine vllm hands adapters to its server, not "
            "whole models; set evaluation.engine to native, or give model.lora."
        )


class SFTModule(LightningModule):
    """A causal language model under supervised fine-tuning.

    Args:
        base: A folder in Hugging Face format, ``world://base``, or a hub name.
        evaluation: What is measured; its own config group.
        quantization: ``nf4`` with double quantisation, ``int8``, or an unquantised ``bf16`` or
            ``fp32``.
        lora: The adapters; None trains an unquantised base in full.
        gradient_checkpointing: Trade a second forward for the memory of activations.
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
        quantization: Quantization = "nf4",
        lora: Lora | None = Lora(),
        gradient_checkpointing: bool = False,
        optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw",
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_trainable(quantization, lora, evaluation.engine)
        if optimizer == "paged_adamw_8bit" and not torch.cuda.is_available():
            raise RequestError(
                "model.optimizer paged_adamw_8bit needs CUDA, found none; set it to adamw."
            )
        self.engine = make_engine(
            evaluation.engine,
            evaluation.batch_size,
            evaluation.batch_tokens,
            evaluation.vllm,
            drafts=evaluation.drafts,
        )
        self.base = base
        self.evaluation = evaluation
        self.quantization = quantization
        self.lora = lora
        self.gradient_checkpointing = gradient_checkpointing
        self.optimizer_name = optimizer
        self.weight_decay = weight_decay
        self.seed = seed
        self.schedule: Schedule | None = None  # set by StageScheduler before the optimizer is built
        self.last_evaluation: Evaluation | None = None
        # A checkpoint holds trained parameters only, the base comes from where it was loaded.
        self.strict_loading = False
        # Plain dicts: they are reset before every evaluation, so that nothing of them is kept.
        self.val_losses: dict[str, TokenLoss] = {}
        self._answers: dict[str, dict[int, list[Answer]]] = {}
        self._loaded_step = 0  # of the checkpoint that `validate` and `test` score
        self._generator: Any = None
        self._generator_weights = ExitStack()

    @override
    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        self.load(str(self.trainer.precision), packing=self._data.packing)

    def load(self, precision: str, *, packing: bool) -> None:
        """Load the base and put the adapters in.

        Args:
            precision: The Trainer's.
            packing: Whether rows are packed, for which the architecture is checked.

        Raises:
            RequestError: If the base cannot be trained here.
        """
        model = load_base(self.base, self.quantization, compute_dtype(precision))
        check_head(model)
        if packing:
            check_packing(model)
        if self.lora is not None:
            model = add_lora(model, self.lora, self.seed)
        if self.gradient_checkpointing:
            plain_causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
        self.model = model

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
        # Asked for at every step: the schedule may change while the run goes on.
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
        with_base_logits = any(term.needs_base_logits for term in terms)
        tokens = read_targets(self.model, batch, sources, with_base_logits=with_base_logits)
        losses = token_losses(tokens, terms)
        # Lightning divides by accumulate_grad_batches. What is wanted is the mean over all target
        # tokens of the window, not a mean of means: lightning issue 20350.
        loss = losses.sum() / batch["window_target_tokens"] * self.trainer.accumulate_grad_batches
        nll, source_ids = tokens.nll.detach().double(), tokens.source_ids
        return {
            "loss": loss,
            "nll": torch.bincount(source_ids, nll, minlength=len(sources)),
            "target_tokens": torch.bincount(source_ids, minlength=len(sources)),
        }

    def token_nll(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return negative log-likelihood and source of every target token, both ``[N]``."""
        tokens = read_targets(self.model, batch, list(self._corpus.sources))
        return tokens.nll, tokens.source_ids

    @override
    def on_validation_start(self) -> None:
        self._answers = {name: {} for name in self.evaluation.benchmarks}
        for metric in self.val_losses.values():
            metric.reset()
        if isinstance(self.engine, NativeEngine) and self.engine.earlier is not None:
            fitting = self.trainer.state.fn == TrainerFn.FITTING
            self.engine.earlier.begin(self.trainer.global_step if fitting else self._loaded_step)
        self.release_generator()
        self._generator = self._generator_weights.enter_context(self._serving())

    def _serving(self) -> AbstractContextManager[Any]:
        """Return what holds, while an evaluation lasts, what the engine generates with."""
        if isinstance(self.engine, VllmEngine):
            run_id = getattr(self.trainer.logger, "run_id", None) or "run"
            # A run that goes on measures a step again; what was served then is another adapter.
            name = f"sft_lab-{run_id}-step-{self.trainer.global_step}-{uuid4().hex[:8]}"
            return self.engine.serving(self.model, name)
        dtype = compute_dtype(str(self.trainer.precision))
        return evaluation_weights(self.model, self.evaluation.weights, dtype)

    @property
    def generates_with(self) -> str:
        """What answers in an evaluation, for the record."""
        if isinstance(self.engine, VllmEngine):
            return f"vllm: adapters on {self.engine.served_base or self.base}"
        return self.evaluation.weights

    def release_generator(self) -> None:
        """Give up the weights that an evaluation generates with, also one that has failed."""
        self._generator = None
        self._generator_weights.close()

    @override
    def validation_step(
        self, batch: Batch | PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if "prompts" in batch:
            self._answer(cast(PromptBatch, batch))
            return
        batch = cast(Batch, batch)
        nll, _ = self.token_nll(batch)
        source = list(self._corpus.sources)[int(batch["source_ids"][0, 0])]
        if source not in self.val_losses:
            self.val_losses[source] = TokenLoss().to(self.device)
        self.val_losses[source].update(nll.double().sum(), len(nll))

    def _answer(self, batch: PromptBatch) -> None:
        name = batch["benchmark"]
        benchmark = self.evaluation.benchmarks[name]
        all_items = benchmark.items()
        renderer = self._corpus.renderer
        indices, prompts = batch["indices"], batch["prompts"]
        items = [all_items[index] for index in indices]
        if isinstance(benchmark, HarnessTask):
            self._measure(benchmark, name, indices, items)
            return
        decoding = self.evaluation.decoding(name)
        samples: list[int] | None = None  # of every item; then of each conversation its own
        while items:
            completions = self.engine.complete(
                self._generator,
                prompts,
                max_new_tokens=benchmark.max_new_tokens,
                eos_token_ids=renderer.stop_token_ids,
                pad_token_id=renderer.pad_token_id,
                decode=renderer.decode,
                decoding=decoding,
                samples=samples,
            )
            asked = list(zip(indices, items, strict=True))
            if samples is None:
                asked = [each for each in asked for _ in range(decoding.num_samples)]
                samples = list(range(decoding.num_samples)) * len(items)
            verdicts = benchmark.grade([item for _, item in asked], completions)
            following: list[tuple[int, Item, int]] = []
            for (index, item), sample, completion, verdict in zip(
                asked, samples, completions, verdicts, strict=True
            ):
                found = self._answers[name].setdefault(index, [])
                found.append(Answer(item, completion, verdict))
                if (next_item := benchmark.follow_up(item, completion)) is not None:
                    following.append((index, next_item, sample))
            indices = [index for index, _, _ in following]
            items = [item for _, item, _ in following]
            samples = [sample for _, _, sample in following]
            prompts = [prompt_ids(renderer, item) for item in items]

    def _measure(
        self, benchmark: HarnessTask, name: str, indices: list[int], items: list[Item]
    ) -> None:
        model = HarnessModel(
            self._generator,
            self._corpus.renderer,
            self.engine,
            batch_size=self.evaluation.batch_size,
            batch_tokens=self.evaluation.batch_tokens,
            chat=benchmark.chat,
            max_new_tokens=benchmark.max_new_tokens,
        )
        measured = benchmark.measure(items, model)
        for index, item, (said, verdict) in zip(indices, items, measured, strict=True):
            self._answers[name][index] = [Answer(item, said, verdict)]

    @override
    def on_validation_epoch_end(self) -> None:
        answers = {
            name: [answer for index in sorted(found) for answer in found[index]]
            for name, found in self._answers.items()
        }
        scores = {
            f"{name}/{score_name}": score
            for name, found in answers.items()
            for score_name, score in self.evaluation.benchmarks[name]
            .scores([answer.item for answer in found], [answer.verdict for answer in found])
            .items()
        }
        metrics: dict[str, float] = {}
        for key, score in scores.items():
            metrics |= {key: score.value, f"{key}_low": score.low, f"{key}_high": score.high}
            metrics[f"{key}_n"] = float(score.n)
        for source, loss in self.val_losses.items():
            metrics[f"val_loss/{source}"] = loss.compute().item()
        benchmarks = self.evaluation.benchmarks
        abilities = {
            key: score
            for key, score in scores.items()
            if benchmarks[key.split("/")[0]].is_ability(key.split("/")[1])
        }
        self.last_evaluation = Evaluation(metrics, abilities, answers)
        # For EarlyStopping and the like; AbilityHistory takes them to the logger, with the right
        # step.
        self.log_dict(metrics, logger=False)

    @override
    def on_validation_end(self) -> None:
        self.release_generator()

    # `test` measures what `validate` measures: the benchmarks are test sets, and nothing is chosen
    # by them.
    on_test_start = on_validation_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = kept_weights(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
        if isinstance(self.engine, NativeEngine) and self.engine.earlier is not None:
            checkpoint["earlier_answers"] = self.engine.earlier.state_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded_step = checkpoint["global_step"]
        add_frozen_adapters(self.model, checkpoint["state_dict"])
        # An earlier version of the lab kept none; such a checkpoint can be scored.
        kept = checkpoint.get("earlier_answers")
        if kept and isinstance(self.engine, NativeEngine) and self.engine.earlier is not None:
            self.engine.earlier.load_state_dict(kept)
