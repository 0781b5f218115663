"""Tiny random models of transformers' families, built from their configs alone."""

from typing import Any

import torch

VOCAB_SIZE = 64

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    # Strong weights, so that a small mistake changes losses and answers.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Other names of the same sizes.
    "n_embd": 32,
    "d_model": 32,
    "n_inner": 64,
    "ffn_dim": 64,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "n_positions": 128,
    "word_embed_proj_dim": 32,
    "rotary_dim": 4,
    # Windows shorter than the texts of the checks.
    "sliding_window": 16,
    "attention_window_size": 16,
    "attention_chunk_size": 32,
    # Experts.
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    # Latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # Convolutions and recurrences.
    "conv_kernel": 4,
    "state_size": 8,
    "ssm_state_size": 8,
    "time_step_rank": 4,
    "chunk_size": 16,
    "lru_width": 32,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_dt_rank": 4,
    "mamba_chunk_size": 16,
    "n_groups": 1,
    "n_mamba_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # Dropout off, so that losses can be compared.
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "dropout": 0.0,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "residual_dropout": 0.0,
}
_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ["deepseek_v2", "deepseek_v3", "minicpm3", "glm4_moe_lite", "longcat_flash", "youtu"],
        _LATENT,
    ),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"], _LINEAR),
    "olmo_hybrid": _LINEAR,
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "logits_scaling": 4.0},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "bailing_hybrid": {"layer_group_size": 2, **_LATENT},
    "kimi_linear": {**_LINEAR, **_LATENT},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid"],
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gemma3n_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "final_logit_softcapping": 2.0,
    },
    "recurrent_gemma": {"logits_soft_cap": 2.0, "block_types": ["recurrent", "attention"]},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"]},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5},
    "gemma2": {"final_logit_softcapping": 2.0},
    "vaultgemma": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 4.0},
}


def tiny_config(kind: str, **changes: Any) -> Any:
    """Return the config of a tiny model.

    Args:
        kind: The family's ``model_type`` in transformers.
        changes: Keys of its own.
    """
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind]
    known = config_class()
    own = _OWN.get(kind, {})
    sizes = {k: v for k, v in {**_SIZES, **own}.items() if k in own or hasattr(known, k)}
    return config_class(**{**sizes, **changes})


def tiny_model(kind: str, **changes: Any) -> Any:
    """Return a random float32 model in eval mode; its weights depend on nothing but its config."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            tiny_config(kind, **changes), dtype=torch.float32
        ).eval()
