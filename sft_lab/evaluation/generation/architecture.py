"""Find how an architecture takes its cache and its padding."""

from inspect import signature
from typing import Any

import torch

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation.kv_cache import RoomyCache
from sft_lab.model.logits import influence, watched_embeddings
from sft_lab.model.qlora import plain_causal_lm


def cache_name(model: Any) -> str:
    """Return the argument by which a model takes its cache.

    Raises:
        RequestError: If it takes none that rows can leave.
    """
    causal_lm = plain_causal_lm(model)
    names = signature(type(causal_lm).forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in names:
            return name
    raise _unavailable(type(causal_lm).__name__, "it keeps what it has read in a form of its own")


def sees_padding(model: Any) -> bool:
    """Return whether padding before a prompt changes what follows, in spite of the mask.

    The padding's embeddings have a gradient of exactly zero if nothing depends on them. Attention
    never does; some recurrent layers do.

    Args:
        model: A causal language model, in eval mode.

    Raises:
        RequestError: If it cannot read a padded prompt into a cache.
    """
    cache = RoomyCache(model.config)
    if not cache.is_recurrent:
        return False
    causal_lm, name = plain_causal_lm(model), cache_name(model)
    input_ids = torch.arange(5, 13, device=model.device)[None]
    input_ids = input_ids % causal_lm.config.get_text_config().vocab_size
    mask = torch.tensor([[0] * 4 + [1] * 4], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with watched_embeddings(causal_lm) as embeddings:
        # Layers that are computed in place for a cache have no gradient, so there is none.
        logits = causal_lm(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits
        changes = bool(influence(logits[:, 4:], embeddings)[:4].any())
    try:
        with torch.no_grad():
            causal_lm(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{name: cache},
            )
    except ValueError as fault:
        why = str(fault).partition(". ")[0][:200].rstrip(".")
        raise _unavailable(type(causal_lm).__name__, why) from fault
    return changes


def _unavailable(name: str, why: str) -> RequestError:
    return RequestError(
        f"evaluation.engine native: {name} cannot answer in batches, {why}; train it without "
        "benchmarks, or name another model.base."
    )
