"""What a run will cost, said before anything is trained: steps, evaluations, memory, minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_lab.cost.known_speed import Minutes, Speed, Work, minutes
from sft_lab.evaluation.generation.kv_cache import CACHE_ROOM
from sft_lab.evaluation.generation.native import PASS_TOKENS
from sft_lab.evaluation.prompts import Prompts
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.model.memory import Memory, ModelSize, optimizer_bytes
from sft_lab.model.size import ModelSettings, model_size
from sft_lab.runs.machine import device_name
from sft_lab.training.data_modules import HELD_OUT_FACTOR, StagedDataModule
from sft_lab.training.order import RowCounts
from sft_lab.training.plan import StagePlan, Window


@dataclass(frozen=True)
class StageCost:
    """What a stage trains, every pass counted."""

    steps: int
    passes: int
    samples: int
    tokens: int
    target_tokens: int


@dataclass(frozen=True)
class EvaluationCost:
    """How often a run evaluates, and how much it may generate.

    Attributes:
        full: Evaluations on all items: before the first step and at every stage boundary.
        between: All others; with ``evaluation.budget`` they use a part of the items.
        items: Items of a full evaluation.
        generated_tokens: Most tokens that a full evaluation generates.
    """

    full: int
    between: int
    items: int
    generated_tokens: int

    @property
    def total(self) -> int:
        """All evaluations."""
        return self.full + self.between

    @property
    def total_generated_tokens(self) -> int:
        """Most tokens that all evaluations generate, a budget not counted."""
        return self.total * self.generated_tokens


@dataclass(frozen=True)
class RunCost:
    """What a run will cost.

    Attributes:
        stages: By name, in order.
        evaluations: How often and how much.
        memory: Bytes at its height, by part.
        micro_batch_bytes: The total of ``memory`` for every micro-batch size that divides the
            batch size, smallest first.
        minutes: How long it takes; None where nothing tells how fast it will be.
        trained_parameters: How many parameters are trained.
        parameters: How many parameters the base has.
    """

    stages: Mapping[str, StageCost]
    evaluations: EvaluationCost
    memory: Memory
    micro_batch_bytes: Mapping[int, int]
    minutes: Minutes | None
    trained_parameters: int
    parameters: int

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages.values())

    @property
    def samples(self) -> int:
        """Rows of all stages, every pass counted."""
        return sum(stage.samples for stage in self.stages.values())

    @property
    def tokens(self) -> int:
        """Tokens of all stages, prompts included, every pass counted."""
        return sum(stage.tokens for stage in self.stages.values())

    @property
    def target_tokens(self) -> int:
        """Tokens of all stages that carry loss, every pass counted."""
        return sum(stage.target_tokens for stage in self.stages.values())

    def largest_micro_batch_size(self, free: int) -> int | None:
        """Return the largest micro-batch size that fits so many bytes; None where none does."""
        return max(
            (m for m, total in self.micro_batch_bytes.items() if total <= free), default=None
        )


def run_cost(
    data: StagedDataModule, settings: ModelSettings, speed: Speed | None = None
) -> RunCost:
    """Return what a run will cost; nothing is loaded but a base's config.

    Args:
        data: A data module with every stage planned, as ``launch.build.plan_data`` makes it.
        settings: The run's model.
        speed: How fast it will be, as ``KnownSpeeds`` finds it by ``run_parameters``; None where
            unknown.

    Raises:
        RequestError: If the model's settings are wrong or there is no such base.
    """
    size = model_size(settings.base, settings.quantization, settings.lora, settings.precision)
    num_tokens = {name: loaded.num_tokens for name, loaded in data.corpus.loaded.items()}
    num_targets = {name: loaded.num_target_tokens for name, loaded in data.corpus.loaded.items()}
    stages: dict[str, StageCost] = {}
    windows: list[Window] = []
    for module in data.stage_modules:
        stages[module.plan.name] = _stage_cost(module.plan, num_tokens, num_targets)
        windows += module.plan.windows
    sequences = _sequences(windows, num_tokens, num_targets, data.batch_size)
    boundaries = list(accumulate(stage.steps for stage in stages.values()))
    suite = data.evaluation
    due = [step for step in range(boundaries[-1] + 1) if suite.is_due(step, boundaries)]
    items = {name: len(benchmark.items()) for name, benchmark in suite.benchmarks.items()}
    generated = {name: _generated_tokens(suite, name) for name in items}
    num_full = len({0, *boundaries})
    evaluations = EvaluationCost(
        num_full, len(due) - num_full, sum(items.values()), sum(generated.values())
    )
    sizes = [m for m in range(1, data.batch_size + 1) if data.batch_size % m == 0]
    memories = {m: _memory(data, settings, size, sequences, m) for m in sizes}
    work = Work(
        steps=boundaries[-1],
        tokens=sum(stage.tokens for stage in stages.values()),
        full=num_full,
        between=evaluations.between,
        items=items,
        generated_tokens=generated,
        budget=suite.budget,
    )
    return RunCost(
        stages=stages,
        evaluations=evaluations,
        memory=memories[data.micro_batch_size],
        micro_batch_bytes={m: memory.total for m, memory in memories.items()},
        minutes=None if speed is None else minutes(work, speed),
        trained_parameters=size.trained_parameters,
        parameters=size.parameters,
    )


def run_parameters(data: StagedDataModule, settings: ModelSettings) -> dict[str, Any]:
    """Return what decides a run's speed, by the names that MLflow shows.

    Args:
        data: The run's data module.
        settings: Its model.
    """
    return {
        "model.base": settings.base,
        "model.quantization": settings.quantization,
        "model.gradient_checkpointing": settings.gradient_checkpointing,
        "model.lora.r": None if settings.lora is None else settings.lora.r,
        "precision": settings.precision,
        "device": device_name(),
        "data.micro_batch_size": data.micro_batch_size,
        "data.packing": data.packing,
        "evaluation.weights": data.evaluation.weights,
        "evaluation.batch_size": data.evaluation.batch_size,
        "evaluation.drafts": data.evaluation.drafts,
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


def _sequences(
    windows: Sequence[Window], num_tokens: RowCounts, num_targets: RowCounts, batch_size: int
) -> NDArray[np.int64]:
    """Return tokens and target tokens of every step's sequences, longest first, 0 where none is.

    Returns:
        int64 ``[steps, batch_size, 2]``.
    """
    found = np.zeros((len(windows), batch_size, 2), np.int64)
    for step, window in enumerate(windows):
        for place, refs in enumerate(window):
            for ref in refs:
                found[step, place] += (
                    num_tokens[ref.source][ref.index],
                    num_targets[ref.source][ref.index],
                )
    order = np.argsort(-found[:, :, :1], axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


def _memory(
    data: StagedDataModule,
    settings: ModelSettings,
    size: ModelSize,
    sequences: NDArray[np.int64],
    micro_batch_size: int,
) -> Memory:
    steps, batch_size, _ = sequences.shape
    cut = sequences.reshape(steps, batch_size // micro_batch_size, micro_batch_size, 2)
    rows = (cut[..., 0] > 0).sum(-1)
    tokens = (rows * cut[..., 0].max(-1)).ravel()  # padded to the longest
    targets = cut[..., 1].sum(-1).ravel()
    checkpointing = settings.gradient_checkpointing
    different, places = np.unique(tokens, return_inverse=True)
    most_targets = np.zeros_like(different)  # of the micro-batches of a size
    np.maximum.at(most_targets, places, targets)
    found = [
        (size.kept(t, checkpointing=checkpointing), max(size.backward(t), size.loss(n)))
        for t, n in zip(different.tolist(), most_targets.tolist(), strict=True)
    ]
    activations, backward = max(found, key=sum)
    suite = data.evaluation
    answered = _answered(data)
    held_out = _held_out(data, micro_batch_size)
    copies = {"live": 0, "dequantized": size.dequantized, "merged": size.merged}
    return Memory(
        weights=size.weights,
        adapters=size.trained_bytes if size.is_adapted else 0,
        gradients=size.trained_bytes,
        optimizer=optimizer_bytes(size.trained, settings.optimizer),
        activations=activations,
        backward=backward,
        evaluation_weights=copies[suite.weights],
        kv_cache=size.kv_per_token * answered.tokens,
        evaluation_work=max(
            size.forward(answered.pass_tokens) + answered.logits * size.vocab_size * size.logit,
            size.forward(held_out.tokens) + size.validation_loss(held_out.targets),
        ),
    )


class _Answered(NamedTuple):
    """The most that answers take, each of any benchmark.

    Attributes:
        tokens: Tokens that a batch holds at its end.
        pass_tokens: Tokens of a pass over prompts and drafts.
        logits: Tokens whose logits are asked for in a pass; a bound, as drafts may be short.
    """

    tokens: int = 0
    pass_tokens: int = 0
    logits: int = 0


def _answered(data: StagedDataModule) -> _Answered:
    suite = data.evaluation
    found = [_Answered()]
    for prompts in data.eval_sets:
        if not isinstance(prompts, Prompts) or suite.engine == "vllm":  # a server's own memory
            continue
        benchmark = suite.benchmarks[prompts.name]
        longest = max(map(len, prompts.prompts))
        end = longest + benchmark.max_new_tokens
        rows = min(
            suite.batch_size, len(prompts.prompts) * suite.decoding(prompts.name).num_samples
        )
        if suite.batch_tokens is not None:
            rows = min(rows, max(1, suite.batch_tokens // end))
        greedy = suite.decoding(prompts.name).temperature == 0
        drafted, pass_tokens = 0, rows * longest
        if suite.engine == "native":
            drafted = benchmark.max_new_tokens - 1 if suite.drafts and greedy else 0
            one = longest + drafted
            pass_tokens = min(rows * one, max(PASS_TOKENS, one))
        logits = max(rows, min(rows * (1 + drafted), pass_tokens))
        found.append(_Answered(rows * (end + CACHE_ROOM), pass_tokens, logits))
    return _Answered(*map(max, zip(*found, strict=True)))


class _HeldOut(NamedTuple):
    """The longest batch of held-out rows, padding counted, and its target tokens."""

    tokens: int = 0
    targets: int = 0


def _held_out(data: StagedDataModule, micro_batch_size: int) -> _HeldOut:
    found = [_HeldOut()]
    for loaded in data.corpus.loaded.values():
        rows = loaded.ranked[: loaded.val_rows]
        longest = sorted(rows, key=lambda row: -int(loaded.num_tokens[row]))
        batch = longest[: HELD_OUT_FACTOR * micro_batch_size]
        if batch:
            targets = int(loaded.num_target_tokens[batch].sum())
            found.append(_HeldOut(len(batch) * int(loaded.num_tokens[batch[0]]), targets))
    return max(found)
