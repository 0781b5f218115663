from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BloomConfig,
    CodeGenConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    XGLMConfig,
)

from sft_lab.model.limits import ModelLimits, model_limits


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, n_positions=99), 99),
        # A table of two rows more than there are positions.
        (
            OPTConfig(
                vocab_size=50,
                hidden_size=8,
                ffn_dim=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                word_embed_proj_dim=8,
                max_position_embeddings=99,
            ),
            99,
        ),
        # Precomputed sines, of each layer or of the model.
        (
            CodeGenConfig(
                vocab_size=50, n_embd=16, n_layer=1, n_head=4, n_positions=99, rotary_dim=4
            ),
            99,
        ),
        (
            XGLMConfig(
                vocab_size=50,
                d_model=8,
                ffn_dim=8,
                num_layers=1,
                attention_heads=1,
                max_position_embeddings=99,
            ),
            99,
        ),
        # Computed as far as needed.
        (LlamaConfig(vocab_size=50, max_position_embeddings=99), None),
        (GPTNeoXConfig(vocab_size=50, max_position_embeddings=99), None),
        (BloomConfig(vocab_size=50, hidden_size=8, n_layer=1, n_head=1), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_positions_of_a_table_are_limited(
    tmp_path: Path, config: Any, positions: int | None
) -> None:
    config.save_pretrained(tmp_path)
    assert model_limits(str(tmp_path)) == ModelLimits(50, positions)
