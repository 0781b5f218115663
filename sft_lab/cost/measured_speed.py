"""Estimate how long a run will take by timing a few of its steps and answers on this device."""

import time
from collections.abc import Sequence
from typing import Any, cast

import torch

from sft_lab.cost.known_speed import Speed
from sft_lab.model.qlora import compute_dtype
from sft_lab.training.batches import Batch, MicroBatches, bin_length
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.loss import LossTerm, read_targets, token_losses
from sft_lab.training.module import SFTModule
from sft_lab.training.plan import Window

_TIMED_STEPS = 3
_NEW_TOKENS = 16


def measured_speed(
    module: SFTModule, data: StagedDataModule, precision: str, generated_tokens: int
) -> Speed:
    """Load a run's model, and time three of its steps, and a batch of short and reference answers.

    Answers run to their limit, so the time of a full evaluation is an upper bound.

    Args:
        module: The run's module, not loaded yet; unusable for training afterwards.
        data: Its data module, with every stage planned.
        precision: Precision of the Trainer.
        generated_tokens: Most tokens that a full evaluation generates.
    """
    module.load(precision, packed_by=data.packed_by)
    if torch.cuda.is_available():
        module.to("cuda")
    module.schedule = data.schedule
    windows = [
        (stage.loss, window)
        for stage, stage_module in zip(data.stages.values(), data.stage_modules, strict=True)
        for window in stage_module.plan.windows
    ]
    # Spread over the run, since row lengths differ between stages; the first window warms up.
    places = [len(windows) * (2 * i + 1) // (2 * _TIMED_STEPS) for i in range(_TIMED_STEPS)]
    optimizer = cast(dict[str, Any], module.configure_optimizers())["optimizer"]
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    mixed = precision.endswith("mixed")
    with torch.random.fork_rng(), torch.autocast(module.device.type, dtype, enabled=mixed):
        _train(module, data, optimizer, windows[:1])
        timed = [windows[place] for place in places]
        training_s = _train(module, data, optimizer, timed)
        evaluation_s = _evaluation_s(module, data, generated_tokens, compute_dtype(precision))
    tokens = sum(bin_length(data.corpus, refs) for _, window in timed for refs in window)
    return Speed(
        tokens_per_s=tokens / training_s,
        evaluation_s=evaluation_s,
        generated_tokens=generated_tokens,
        source=f"{_TIMED_STEPS} steps and a batch of {_NEW_TOKENS}-token answers timed here; "
        "evaluation takes less if answers end before their limit",
    )


def _train(
    module: SFTModule,
    data: StagedDataModule,
    optimizer: Any,
    windows: Sequence[tuple[Sequence[LossTerm], Window]],
) -> float:
    """Take a step on each window by its stage's loss, and return the duration in seconds."""
    start = _now()
    sources = list(data.corpus.sources)
    for terms, window in windows:
        batches = MicroBatches(
            data.corpus, [window], data.micro_batch_size, padding_free=data.padding_free
        )
        for index in range(len(batches)):
            moved = {key: value.to(module.device) for key, value in batches[index].items()}  # type: ignore[attr-defined]
            batch = cast(Batch, moved)
            tokens = read_targets(module.model, batch, sources, terms)
            loss = token_losses(tokens, terms).sum() / batch["window_target_tokens"]
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return _now() - start


def _evaluation_s(
    module: SFTModule, data: StagedDataModule, generated_tokens: int, dtype: torch.dtype
) -> float | None:
    suite, renderer = data.evaluation, data.corpus.renderer
    found = suite.prompts(renderer)
    if not found or not suite.engine.is_local:  # a server need not be up yet
        return None
    most = max(found, key=lambda name: len(found[name]) * suite.benchmarks[name].max_new_tokens)
    prompts = found[most].token_ids[: suite.batch_size]
    start = _now()
    with suite.engine.serving(module.model, 0, dtype) as weights:
        ready = _now()
        suite.engine.complete(
            weights,
            prompts,
            max_new_tokens=_NEW_TOKENS,
            eos_token_ids=(),
            pad_token_id=renderer.pad_token_id,
            decode=renderer.decode,
        )
        answered_s = _now() - ready
        read_s = _answer_loss_s(weights, data)
    return ready - start + answered_s * generated_tokens / (len(prompts) * _NEW_TOKENS) + read_s


def _answer_loss_s(weights: Any, data: StagedDataModule) -> float:
    """Return the seconds of all reference answers, by timing one batch of them."""
    suite, renderer = data.evaluation, data.corpus.renderer
    found = suite.references(renderer).values()
    pairs = [pair for of_benchmark in found for pair in of_benchmark if pair is not None]
    if not pairs:
        return 0.0
    timed = pairs[:: -(-len(pairs) // suite.batch_size)]  # spread over all: lengths differ
    start = _now()
    suite.engine.log_likelihoods(weights, timed, pad_token_id=renderer.pad_token_id)
    tokens, timed_tokens = (sum(len(a) + len(b) for a, b in some) for some in (pairs, timed))
    return (_now() - start) * tokens / timed_tokens


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
