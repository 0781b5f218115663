"""Estimate the memory of a run from the sizes of its model, its rows and its prompts."""

from collections.abc import Sequence
from typing import NamedTuple

from sft_lab.evaluation.generation import NativeEngine
from sft_lab.evaluation.generation.kv_cache import CACHE_ROOM
from sft_lab.evaluation.generation.native import PASS_TOKENS
from sft_lab.model.memory import Memory, ModelSize, optimizer_bytes
from sft_lab.model.size import ModelSettings
from sft_lab.training.batches import HeldOutBatches, bin_length, target_tokens
from sft_lab.training.data_modules import HELD_OUT_FACTOR, StagedDataModule


def memory_by_micro_batch(
    data: StagedDataModule, settings: ModelSettings, size: ModelSize
) -> dict[int, Memory]:
    """Return a run's memory for every micro-batch size that divides its batch size, in order.

    Args:
        data: The run's data module, with every stage planned.
        settings: The run's model.
        size: The sizes of that model.
    """
    corpus = data.corpus
    # Tokens and target tokens of each step's sequences, longest first as ``MicroBatches`` has them.
    steps = [
        sorted(
            ((bin_length(corpus, refs), target_tokens(corpus, [refs])) for refs in window),
            key=lambda counts: -counts[0],
        )
        for stage in data.stage_modules
        for window in stage.plan.windows
    ]
    sizes = [m for m in range(1, data.batch_size + 1) if data.batch_size % m == 0]
    answered = _answered(data)
    return {m: _memory(data, settings, size, steps, answered, m) for m in sizes}


def _memory(
    data: StagedDataModule,
    settings: ModelSettings,
    size: ModelSize,
    steps: Sequence[Sequence[tuple[int, int]]],
    answered: "_Answered",
    micro_batch_size: int,
) -> Memory:
    micro_batches = (
        step[start : start + micro_batch_size]
        for step in steps
        for start in range(0, len(step), micro_batch_size)
    )
    # Different micro-batches: tokens, padded to the longest sequence, and target tokens.
    shapes = {(len(batch) * batch[0][0], sum(n for _, n in batch)) for batch in micro_batches}
    checkpointing = settings.gradient_checkpointing
    activations, backward = max(
        (
            (size.kept(tokens, checkpointing=checkpointing), size.backward(tokens, targets))
            for tokens, targets in shapes
        ),
        key=sum,
    )
    held_out_tokens, held_out_targets = _held_out(data, micro_batch_size)
    copies = {"live": 0, "dequantized": size.dequantized, "merged": size.merged}
    return Memory(
        weights=size.weights,
        adapters=size.trained_bytes if size.is_adapted else 0,
        gradients=size.trained_bytes,
        optimizer=optimizer_bytes(size.trained, settings.optimizer),
        activations=activations,
        backward=backward,
        evaluation_weights=copies[data.evaluation.weights],
        kv_cache=size.kv_per_token * answered.tokens,
        evaluation_work=max(
            size.forward(answered.pass_tokens) + answered.logits * size.vocab_size * size.logit,
            size.forward(held_out_tokens) + size.validation_loss(held_out_targets),
        ),
    )


class _Answered(NamedTuple):
    """Hold the largest sizes of generation, each of any benchmark.

    Attributes:
        tokens: Tokens of a batch at its end.
        pass_tokens: Tokens of a pass over prompts and drafts.
        logits: Tokens of a pass whose logits are computed; a bound, as drafts may be short.
    """

    tokens: int = 0
    pass_tokens: int = 0
    logits: int = 0


def _answered(data: StagedDataModule) -> _Answered:
    suite = data.evaluation
    found = [_Answered()]
    # A server has its own memory.
    prompts = suite.prompts(data.corpus.renderer) if suite.engine.is_local else {}
    for name, asked in prompts.items():
        benchmark = suite.benchmarks[name]
        longest = max(map(len, asked.token_ids))
        end = longest + benchmark.max_new_tokens
        rows = min(suite.batch_size, len(asked) * suite.decoding(name).num_samples)
        if suite.batch_tokens is not None:
            rows = min(rows, max(1, suite.batch_tokens // end))
        greedy = suite.decoding(name).temperature == 0
        drafted, pass_tokens = 0, rows * longest
        if isinstance(suite.engine, NativeEngine):
            drafted = benchmark.max_new_tokens - 1 if suite.drafts and greedy else 0
            one = longest + drafted
            pass_tokens = min(rows * one, max(PASS_TOKENS, one))
        logits = max(rows, min(rows * (1 + drafted), pass_tokens))
        found.append(_Answered(rows * (end + CACHE_ROOM), pass_tokens, logits))
    return _Answered(*map(max, zip(*found, strict=True)))


def _held_out(data: StagedDataModule, micro_batch_size: int) -> tuple[int, int]:
    """Return tokens, padding included, and target tokens of the longest held-out batch."""
    found = [(0, 0)]
    for source in data.corpus.loaded:
        batches = HeldOutBatches(data.corpus, source, HELD_OUT_FACTOR * micro_batch_size).batches
        if batches:
            longest = batches[0]
            tokens = len(longest) * bin_length(data.corpus, longest[0])
            found.append((tokens, target_tokens(data.corpus, longest)))
    return max(found)
