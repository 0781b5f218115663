"""Greedy generation for a batch of prompts, on transformers' public interface."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


def batches_longest_first(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group prompts of like length, longest first: little padding, and too big a batch fails early.

    Args:
        lengths: Length of each prompt in tokens.
        batch_size: Most prompts in a batch.

    Returns:
        Indices into ``lengths``, each exactly once, by batch.

    Raises:
        ValueError: If the batch size is below 1.

    >>> batches_longest_first([3, 9, 5, 9], batch_size=2)
    [[1, 3], [2, 0]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    pad_token_id: int,
) -> list[list[int]]:
    """Continue prompts with the most probable tokens, as ``model.generate(do_sample=False)`` does.

    A row leaves the batch when it ends, so that the last long answers do not pay for the rest. The
    model's modes and gradient checkpointing are afterwards what they were; nothing random is used.

    Args:
        model: A causal language model of transformers, or PEFT's wrapper around one.
        prompts: Token ids of each prompt, in one batch.
        max_new_tokens: Longest completion, in tokens.
        eos_token_ids: Tokens that end a completion.
        pad_token_id: Token that fills the left of shorter prompts; never attended to.

    Returns:
        Token ids of each completion, without the prompt and without the token that ended it.

    Raises:
        ValueError: If there is no prompt, an empty one, or nothing to generate.
    """
    if not prompts or not all(prompts):
        raise ValueError("generate needs at least one prompt and no empty one.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
    input_ids, attention_mask = (
        tensor.to(model.device) for tensor in _left_padded(prompts, pad_token_id)
    )
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    completions: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the shrinking batch belongs to
    with _eval_mode(model):
        while True:
            logits = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            token_ids = logits[:, -1].argmax(-1)
            new = token_ids.tolist()
            for row, token_id in zip(rows, new, strict=True):
                if token_id not in eos_token_ids:
                    completions[row].append(token_id)
            going = [
                index
                for index, row in enumerate(rows)
                if new[index] not in eos_token_ids and len(completions[row]) < max_new_tokens
            ]
            if not going:
                return completions
            position_ids = position_ids[:, -1:] + 1
            if len(going) < len(rows):
                keep = torch.tensor(going, device=token_ids.device)
                cache.batch_select_indices(keep)
                token_ids, position_ids = token_ids[keep], position_ids[keep]
                attention_mask = attention_mask[keep]
                rows = [rows[index] for index in going]
            input_ids = token_ids[:, None]
            attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids)], dim=-1)


def _left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both int64 ``[B, T]``."""
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, longest - len(prompt) :] = 1
    return input_ids, attention_mask


@contextmanager
def _eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off, and with it gradient checkpointing, which would switch the cache off."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:  # one by one: parts may differ from the whole
            module.training = mode
