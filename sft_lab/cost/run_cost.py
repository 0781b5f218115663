"""Estimate a run's steps, evaluations, memory and minutes before training."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sft_lab.cost.known_speed import Minutes, Speed, Work, minutes
from sft_lab.cost.run_memory import memory_by_micro_batch
from sft_lab.evaluation.budget import guarded_evaluations
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.model.adapter_config import Lora, Peft
from sft_lab.model.memory import Memory
from sft_lab.model.sharding import FSDP
from sft_lab.model.size import ModelSettings, model_size
from sft_lab.runs.machine import device_name, devices_text
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.order import RowCounts
from sft_lab.training.plan import StagePlan


@dataclass(frozen=True)
class StageCost:
    """Hold what a stage trains in all its passes."""

    steps: int
    passes: int
    samples: int
    tokens: int
    target_tokens: int


@dataclass(frozen=True)
class EvaluationCost:
    """Hold how often a run evaluates, and how much it may generate.

    Attributes:
        full: Evaluations on all items: before the first step and at every stage boundary.
        between: All others; with ``evaluation.budget`` they use some of the items.
        items: Items of a full evaluation.
        generated_tokens: Most tokens that a full evaluation generates.
    """

    full: int
    between: int
    items: int
    generated_tokens: int

    @property
    def total(self) -> int:
        """Return the number of all evaluations."""
        return self.full + self.between

    @property
    def total_generated_tokens(self) -> int:
        """Return the most tokens that all evaluations generate, without a budget."""
        return self.total * self.generated_tokens


@dataclass(frozen=True)
class RunCost:
    """Hold what a run will cost.

    Attributes:
        stages: By name, in order.
        evaluations: Their number and size.
        memory: Peak bytes of each device, by part.
        micro_batch_bytes: The total of ``memory`` for every micro-batch size that divides the
            batch size, smallest first.
        by_strategy: The total of ``memory`` on several devices, by ``trainer.strategy``, of those
            that the model's settings allow; none on one device.
        minutes: Its duration; None if unknown.
        trained_parameters: Number of trained parameters.
        parameters: Number of the base's parameters.
    """

    stages: Mapping[str, StageCost]
    evaluations: EvaluationCost
    memory: Memory
    micro_batch_bytes: Mapping[int, int]
    by_strategy: Mapping[str, int]
    minutes: Minutes | None
    trained_parameters: int
    parameters: int

    @property
    def steps(self) -> int:
        """Return the optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages.values())

    @property
    def samples(self) -> int:
        """Return the rows of all stages and passes."""
        return sum(stage.samples for stage in self.stages.values())

    @property
    def tokens(self) -> int:
        """Return the tokens of all stages and passes, prompts included."""
        return sum(stage.tokens for stage in self.stages.values())

    @property
    def target_tokens(self) -> int:
        """Return the target tokens of all stages and passes."""
        return sum(stage.target_tokens for stage in self.stages.values())

    def largest_micro_batch_size(self, free: int) -> int | None:
        """Return the largest micro-batch size that fits so many bytes, or None if none fits."""
        return max(
            (m for m, total in self.micro_batch_bytes.items() if total <= free), default=None
        )


def run_cost(
    data: StagedDataModule,
    settings: ModelSettings,
    speed: Speed | None = None,
    num_devices: int = 1,
) -> RunCost:
    """Return what a run will cost, loading no more than the base's config.

    Args:
        data: The run's data module, with every stage planned, as ``plan_data`` returns it.
        settings: The run's model.
        speed: Its speed, as ``KnownSpeeds`` finds it by ``run_parameters``; None if unknown.
        num_devices: Number of devices that share a batch.

    Raises:
        RequestError: If the model's settings are wrong or the base is unknown.
    """
    size = model_size(settings.base, settings.quantization, settings.adapters, settings.precision)
    num_tokens = {name: loaded.num_tokens for name, loaded in data.corpus.loaded.items()}
    num_targets = {name: loaded.num_target_tokens for name, loaded in data.corpus.loaded.items()}
    stages = {
        module.plan.name: _stage_cost(module.plan, num_tokens, num_targets)
        for module in data.stage_modules
    }
    boundaries = list(accumulate(stage.steps for stage in stages.values()))
    suite = data.evaluation
    due = [step for step in range(boundaries[-1] + 1) if suite.is_due(step, boundaries)]
    items = {name: len(benchmark.items()) for name, benchmark in suite.benchmarks.items()}
    generated = {name: _generated_tokens(suite, name) for name in items}
    num_full = len({0, *boundaries})
    evaluations = EvaluationCost(
        num_full, len(due) - num_full, sum(items.values()), sum(generated.values())
    )
    reported, chosen = suite.num_items("report"), suite.num_items("selection")
    guard = data.guard
    read = {name: chosen[name] for name in guard.benchmarks()} if guard else {}
    num_guarded = sum(
        guard is not None and name == guard.stage and step not in boundaries
        for (name, stage), end in zip(stages.items(), boundaries, strict=True)
        for step in due
        if end - stage.steps <= step < end and step
    )
    alone = memory_by_micro_batch(data, settings, size, num_devices)
    memories = {
        m: memory.on_each_of(num_devices, size, sharded=settings.sharded)
        for m, memory in alone.items()
    }
    by_strategy = {
        name: alone[data.micro_batch_size].on_each_of(num_devices, size, sharded=sharded).total
        for name, sharded in (("ddp", False), (FSDP, True))
        if num_devices > 1 and (settings.is_shardable or not sharded)
    }
    work = Work(
        steps=boundaries[-1],
        tokens=sum(stage.tokens for stage in stages.values()),
        full=num_full,
        between=evaluations.between,
        items=reported,
        generated_tokens=generated,
        budget=suite.budget,
        report_share=sum(reported.values()) / max(sum(items.values()), 1),
        guarded=guarded_evaluations(items, read, num_guarded),
    )
    return RunCost(
        stages=stages,
        evaluations=evaluations,
        memory=memories[data.micro_batch_size],
        micro_batch_bytes={m: memory.total for m, memory in memories.items()},
        by_strategy=by_strategy,
        minutes=None if speed is None else minutes(work, speed),
        trained_parameters=size.trained_parameters,
        parameters=size.parameters,
    )


def run_parameters(
    data: StagedDataModule, settings: ModelSettings, num_devices: int = 1
) -> dict[str, Any]:
    """Return the parameters that decide a run's speed, by their names in MLflow.

    Args:
        data: The run's data module.
        settings: Its model.
        num_devices: Number of devices that share a batch.
    """
    adapters = settings.adapters
    return {
        "model.base": settings.base,
        "model.quantization": settings.quantization,
        "model.gradient_checkpointing": settings.gradient_checkpointing,
        "model.dequantize": settings.dequantize,
        "model.fused_lora": settings.fused_lora,
        "model.lora.r": adapters.r if isinstance(adapters, Lora) else None,
        "model.peft.class_path": adapters.class_path if isinstance(adapters, Peft) else None,
        "precision": settings.precision,
        "device": device_name(),
        "devices": devices_text(num_devices, sharded=settings.sharded),
        "data.micro_batch_size": data.micro_batch_size,
        "data.packing": data.packing,
        "data.padding_free": data.padding_free,
        "evaluation.weights": data.evaluation.weights,
        "evaluation.batch_size": data.evaluation.batch_size,
        "evaluation.drafts": data.evaluation.drafts,
        "evaluation.answer_loss": data.evaluation.answer_loss,
    }


def _stage_cost(plan: StagePlan, num_tokens: RowCounts, num_targets: RowCounts) -> StageCost:
    counts = plan.count(num_tokens, num_targets).values()
    return StageCost(
        steps=plan.num_steps,
        passes=len(plan.passes),
        samples=sum(count["samples"] for count in counts),
        tokens=sum(count["tokens"] for count in counts),
        target_tokens=sum(count["target_tokens"] for count in counts),
    )


def _generated_tokens(suite: EvaluationSuite, name: str) -> int:
    benchmark = suite.benchmarks[name]
    answers = len(benchmark.items()) * suite.decoding(name).num_samples * benchmark.turns
    return answers * int(benchmark.protocol()["max_new_tokens"])
