"""Log-likelihoods of continuations, in batches, with transformers' public interface."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sft_lab.data.batching import batches_longest_first
from sft_lab.evaluation.generation.engine import TokenPair
from sft_lab.model.logits import HiddenStates, hidden_states
from sft_lab.model.qlora import plain_causal_lm

HEAD_TOKENS = 1024  # positions whose logits, V values each, are held at a time
_DEFAULT_LENGTH = 2048  # if the config has no limit; as in lm-evaluation-harness


def max_length(model: Any) -> int:
    """Return the longest input of a model, in tokens."""
    config = plain_causal_lm(model).config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or _DEFAULT_LENGTH)


def log_likelihoods(
    model: Any,
    pairs: Sequence[TokenPair],
    *,
    pad_token_id: int,
    batch_size: int,
    batch_tokens: int | None = None,
) -> list[tuple[float, bool]]:
    """Return the log-likelihood of each continuation given its context; see ``Engine``.

    Args:
        model: A causal language model of transformers, or PEFT's wrapper around one, in eval mode.
        pairs: Contexts and continuations.
        pad_token_id: Token that pads short rows on the right; no scored token attends to it.
        batch_size: Maximum number of rows at a time.
        batch_tokens: Maximum number of tokens at a time; unlimited by default.
    """
    longest = max_length(model)
    found: dict[int, tuple[float, bool]] = {}
    lengths = [len(context) + len(continuation) for context, continuation in pairs]
    for indices in _batches(lengths, longest, batch_size, batch_tokens):
        batch = _score_batch(model, [pairs[index] for index in indices], longest, pad_token_id)
        found |= dict(zip(indices, batch, strict=True))
    return [found[index] for index in range(len(pairs))]


def _batches(
    lengths: Sequence[int], max_length: int, batch_size: int, batch_tokens: int | None
) -> Iterator[list[int]]:
    for batch in batches_longest_first(lengths, batch_size):
        longest = min(max(lengths[batch[0]], 1), max_length)
        size = max(1, (batch_tokens or longest * len(batch)) // longest)
        yield from (batch[start : start + size] for start in range(0, len(batch), size))


@torch.no_grad()
def _score_batch(
    model: Any, pairs: Sequence[TokenPair], max_length: int, pad_token_id: int
) -> list[tuple[float, bool]]:
    causal_lm = plain_causal_lm(model)
    device = next(causal_lm.parameters()).device
    # The last token is a target only, never an input, so a row may hold one more than the longest
    # input.
    rows = [[*context, *continuation][-max_length - 1 :] for context, continuation in pairs]
    width = max(1, max(map(len, rows)) - 1)
    input_ids = torch.full((len(rows), width), pad_token_id)
    owners: list[int] = []
    places: list[int] = []  # counted over all rows
    targets: list[int] = []
    for owner, (row, (_, continuation)) in enumerate(zip(rows, pairs, strict=True)):
        input_ids[owner, : len(row) - 1] = torch.tensor(row[:-1])
        count = min(len(continuation), len(row) - 1)
        owners += [owner] * count
        end = owner * width + len(row) - 1
        places += range(end - count, end)
        targets += row[len(row) - count :]
    hidden = hidden_states(
        causal_lm,
        input_ids.to(device),
        torch.arange(width, device=device).expand(len(rows), -1),
        torch.tensor(places, dtype=torch.long, device=device),
    )
    values, greedy = _target_logprobs(
        hidden, torch.tensor(targets, dtype=torch.long, device=device)
    )
    sums, all_greedy = [0.0] * len(rows), [True] * len(rows)
    for owner, value, is_greedy in zip(owners, values, greedy, strict=True):
        sums[owner] += value
        all_greedy[owner] &= is_greedy
    return list(zip(sums, all_greedy, strict=True))


def _target_logprobs(hidden: HiddenStates, targets: Tensor) -> tuple[list[float], list[bool]]:
    """Return the log-probability of every target, and whether it is the most probable token."""
    values: list[float] = []
    greedy: list[bool] = []
    chunks = zip(hidden.states.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)
    for states, target in chunks:
        logits = hidden.head(states).float()
        values += (-functional.cross_entropy(logits, target, reduction="none")).tolist()
        greedy += (logits.argmax(-1) == target).tolist()
    return values, greedy
