"""Tiny models of several architectures, and what they answer: by the lab and by transformers."""

from collections.abc import Sequence
from typing import Any

import peft
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sft_lab.evaluation.generation import generate

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,  # far from ties, and answers that vary
    "attention_dropout": 0.5,  # must not act
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
# A window shorter than the prompts: its cache drops old tokens, padding first.
WINDOW = {
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
ARCHITECTURES = ["llama", "qwen2", "gpt_neox", "gemma3", "bloom"]
BLOOM = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "initializer_range")}
BLOOM |= {"n_layer": 2, "n_head": 4}
PAD, EOS = 0, (1, 2, 3, 4)
PROMPTS = [[5 + (row * 7 + place * 3) % 35 for place in range(3 + row % 6)] for row in range(12)]


def tiny(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    match architecture:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**GROUPED))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**GROUPED))
        case "bloom":  # its own attention, which reads the mask of tokens
            return BloomForCausalLM(BloomConfig(**BLOOM))
        case "gpt_neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))
        case "gemma3":
            # Tied embeddings would repeat one token for ever.
            config = Gemma3TextConfig(**GROUPED, **WINDOW, tie_word_embeddings=False)
            return Gemma3ForCausalLM(config)
    raise ValueError(architecture)


def with_lora(model: PreTrainedModel) -> peft.PeftModel:
    config = peft.LoraConfig(
        r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False
    )
    return peft.get_peft_model(model, config)


def ours(
    model: PreTrainedModel, prompts: list[list[int]] = PROMPTS, **settings: Any
) -> list[list[int]]:
    return generate(
        model, prompts, max_new_tokens=12, eos_token_ids=EOS, pad_token_id=PAD, **settings
    )


def batch_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Watch a model: rows and tokens attended to of every forward pass to come."""
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(
            (len(kwargs["attention_mask"]), kwargs["attention_mask"].shape[-1])
        ),
        with_kwargs=True,
    )
    return shapes


def theirs(model: PreTrainedModel) -> list[list[int]]:
    model.eval()
    answers = []
    for prompt in PROMPTS:
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(EOS),
            pad_token_id=PAD,
        )
        answer = output[0, len(prompt) :].tolist()
        answers.append(answer[:-1] if answer[-1] in EOS else answer)
    return answers


def words(token_ids: Sequence[int]) -> str:
    """The text of token ids: 7 is "7 ", so that every answer has borders inside a string."""
    return "".join(f"{token_id} " for token_id in token_ids)
