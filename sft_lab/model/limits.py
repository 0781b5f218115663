"""Read from a base's config which token ids and positions it has, without its weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sft_lab.model.qlora import check_base, read_config


@dataclass(frozen=True)
class ModelLimits:
    """Hold what a base can read.

    Attributes:
        num_ids: Number of token ids that it has an embedding of.
        num_positions: Length of its table of positions; None for rotary and other computed ones.
    """

    num_ids: int
    num_positions: int | None


def model_limits(base: str) -> ModelLimits:
    """Return the limits of a base.

    Args:
        base: A folder, ``world://base`` or a hub name; only its config is read.

    Raises:
        RequestError: If there is no such base.
    """
    config = read_config(check_base(base))
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    is_rotary = getattr(text, "rope_parameters", None) is not None
    has_table = longest is not None and not is_rotary and _has_position_table(config, longest)
    return ModelLimits(text.vocab_size, longest if has_table else None)


def _has_position_table(config: Any, length: int) -> bool:
    """Return whether an architecture looks positions up in a table, learned or precomputed."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    tokens = model.get_input_embeddings()
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m != tokens]
    buffers = [buffer for name, buffer in model.named_buffers() if "position" in name]
    # Some put up to two unused rows before the first position.
    return any(t.dim() and 0 <= len(t) - length <= 2 for t in (*embeddings, *buffers))
