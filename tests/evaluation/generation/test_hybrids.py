"""Bases with convolutions and recurrences, whose rows end at different times."""

from typing import Any

import pytest
import torch
from tiny_families import tiny_model
from tiny_models import words

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation import Decoding, generate
from sft_lab.evaluation.generation.stop_strings import before_stop

PROMPTS = [[5 + (row * 7 + place * 3) % 50 for place in range(3 + row * 5 % 9)] for row in range(6)]


def alone(model: Any) -> list[list[int]]:
    """Return transformers' answers, each prompt alone."""
    return [
        model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=63,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize(
    "kind", ["qwen3_next", "lfm2", "falcon_h1", "jamba", "mamba", "recurrent_gemma"]
)
def test_rows_that_end_early_leave_the_others_their_state(kind: str) -> None:
    model = tiny_model(kind)
    expected = [words(answer).partition("63 ")[0] for answer in alone(model)]
    # Three of the answers end after a few tokens.
    pairs = (" ".join(expected[row].split()[row : row + 2]) for row in (0, 2, 4))
    stops = tuple(pair for pair in pairs if pair)
    decoding = Decoding(stop_strings=stops)
    found = generate(
        model,
        PROMPTS,
        max_new_tokens=12,
        eos_token_ids=[63],
        pad_token_id=0,
        decoding=decoding,
        decode=words,
    )
    assert len({len(answer) for answer in found}) > 1
    assert [before_stop(words(answer), stops) for answer in found] == [
        before_stop(answer, stops) for answer in expected
    ]


@pytest.mark.parametrize(
    ("kind", "why"), [("rwkv", "keeps what it has read"), ("minimax", "MiniMax uses cache of its")]
)
def test_a_cache_that_rows_cannot_leave_is_refused(kind: str, why: str) -> None:
    with pytest.raises(RequestError, match=rf"^evaluation\.engine native: .* {why}"):
        generate(tiny_model(kind), PROMPTS, max_new_tokens=2, eos_token_ids=[63], pad_token_id=0)
