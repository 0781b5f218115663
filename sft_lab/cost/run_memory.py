"""Estimate the memory of a run from the sizes of its model, its rows and its prompts."""

from collections.abc import Sequence

from sft_lab.evaluation.generation.engine import Footprint
from sft_lab.evaluation.generation.likelihoods import HEAD_TOKENS
from sft_lab.model.memory import Memory, ModelSize, optimizer_bytes
from sft_lab.model.size import ModelSettings
from sft_lab.training.batches import HeldOutBatches, bin_length, target_tokens
from sft_lab.training.data_modules import HELD_OUT_FACTOR, StagedDataModule
from sft_lab.training.packing import pack_evenly


def memory_by_micro_batch(
    data: StagedDataModule, settings: ModelSettings, size: ModelSize, num_devices: int = 1
) -> dict[int, Memory]:
    """Return the memory on one device for every micro-batch size that divides its batch, in order.

    Args:
        data: The run's data module, with every stage planned.
        settings: The run's model.
        size: The sizes of that model.
        num_devices: Number of devices that share a batch.
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
    share = data.batch_size // num_devices
    sizes = [m for m in range(1, share + 1) if data.batch_size % (m * num_devices) == 0]
    answered = _footprint(data)
    return {m: _memory(data, settings, size, steps, answered, m) for m in sizes}


def _memory(
    data: StagedDataModule,
    settings: ModelSettings,
    size: ModelSize,
    steps: Sequence[Sequence[tuple[int, int]]],
    answered: Footprint,
    micro_batch_size: int,
) -> Memory:
    micro_batches = (
        step[start : start + micro_batch_size]
        for step in steps
        for start in range(0, len(step), micro_batch_size)
    )

    def padded(lengths: Sequence[int]) -> int:
        if data.padding_free:
            packed = pack_evenly(lengths, data.corpus.max_length)
            lengths = [sum(lengths[place] for place in places) for places in packed]
        return len(lengths) * max(lengths)

    # Different micro-batches: tokens, padded to the longest sequence, and target tokens.
    shapes = {(padded([n for n, _ in batch]), sum(n for _, n in batch)) for batch in micro_batches}
    checkpointing = settings.gradient_checkpointing
    in_chunks = not any(stage.loss for stage in data.stages.values())
    activations, backward = max(
        (
            (
                size.kept(tokens, checkpointing=checkpointing),
                size.backward(tokens, targets, in_chunks=in_chunks),
            )
            for tokens, targets in shapes
        ),
        key=sum,
    )
    held_out_tokens, held_out_targets = _held_out(data, micro_batch_size)
    copies = {"live": 0, "dequantized": size.dequantized, "merged": size.merged}
    return Memory(
        weights=size.weights + (size.dequantized if settings.dequantize == "cached" else 0),
        adapters=size.trained_bytes if size.is_adapted else 0,
        gradients=size.trained_bytes,
        optimizer=optimizer_bytes(size.trained, settings.optimizer),
        activations=activations,
        backward=backward,
        evaluation_weights=copies[data.evaluation.weights],
        kv_cache=size.kv_per_token * answered.cached,
        evaluation_work=max(
            size.forward(answered.in_pass) + answered.logits * size.vocab_size * size.logit,
            size.forward(held_out_tokens) + size.validation_loss(held_out_targets),
        ),
    )


def _footprint(data: StagedDataModule) -> Footprint:
    """Return the largest needs of answers and of reference answers, over all benchmarks."""
    suite = data.evaluation
    found = [Footprint()]
    for name, asked in suite.prompts(data.corpus.renderer).items():
        benchmark = suite.benchmarks[name]
        longest = max(map(len, asked.token_ids))
        rows = min(suite.batch_size, len(asked) * suite.decoding(name).num_samples)
        if suite.batch_tokens is not None:
            rows = min(rows, max(1, suite.batch_tokens // (longest + benchmark.max_new_tokens)))
        decoding = suite.decoding(name)
        found.append(suite.engine.footprint(rows, longest, benchmark.max_new_tokens, decoding))
    for pairs in suite.references(data.corpus.renderer).values():
        lengths = [sum(map(len, pair)) for pair in pairs if pair is not None]
        longest = max(lengths, default=1)
        rows = min(suite.batch_size, len(lengths))
        if suite.batch_tokens is not None:
            rows = min(rows, max(1, suite.batch_tokens // longest))
        found.append(Footprint(0, rows * longest, min(rows * longest, HEAD_TOKENS)))
    return Footprint(*map(max, zip(*found, strict=True)))


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
