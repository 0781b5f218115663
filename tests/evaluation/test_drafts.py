"""Answers that begin with a draft: the same ones, in fewer passes."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    EOS,
    PAD,
    PROMPTS,
    batch_shapes,
    ours,
    theirs,
    tiny,
    with_lora,
    words,
)
from transformers import PreTrainedModel

from sft_lab.evaluation.generation import Decoding, NativeEngine, native

Drafts = list[list[int]]
SAMPLED = Decoding(temperature=1.5, top_p=0.9, num_samples=3, seed=7)


def spoiled(answers: Drafts) -> Drafts:
    """Drafts of every kind: right, too short, wrong from some place on, too long, none, ended."""
    kinds = [
        lambda answer: answer,
        lambda answer: answer[: len(answer) // 2],
        lambda answer: [*answer[:3], *(39 - token for token in answer[3:])],
        lambda answer: [39 - token for token in answer],
        lambda answer: answer + [7] * 20,
        lambda answer: [],
        lambda answer: [*answer, EOS[0], 9],
        lambda answer: [*answer[:2], EOS[1], *answer[2:]],
    ]
    return [kinds[row % len(kinds)](answer) for row, answer in enumerate(answers)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 5, 12])
@pytest.mark.parametrize("pass_tokens", [20, 2048])
def test_no_draft_changes_an_answer(
    architecture: str, batch_size: int, pass_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "PASS_TOKENS", pass_tokens)
    model = tiny(architecture)
    expected = theirs(model)
    assert ours(model, batch_size=batch_size) == expected
    for turn in range(0, 8, 3):  # each answer with several kinds of drafts
        drafts = spoiled(expected[turn:] + expected[:turn])
        drafts = drafts[12 - turn :] + drafts[: 12 - turn]
        assert ours(model, batch_size=batch_size, drafts=drafts) == expected


def test_right_drafts_take_one_pass_and_only_what_is_wrong_is_made_anew() -> None:
    model = tiny("llama")
    expected = theirs(model)
    shapes = batch_shapes(model)
    assert ours(model, drafts=expected) == expected
    assert [rows for rows, _ in shapes] == [12]
    shapes.clear()
    # One answer of 12 tokens: its last four are wrong, one of them comes with the first pass.
    row = next(row for row, answer in enumerate(expected) if len(answer) == 12)
    drafts = [*expected[:row], expected[row][:8] + [39] * 4, *expected[row + 1 :]]
    assert 39 not in expected[row]
    assert ours(model, drafts=drafts) == expected
    assert shapes[1:] == [(1, len(PROMPTS[row]) + n) for n in (9, 10, 11)]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "bloom"])
def test_what_was_wrong_is_not_attended_to(architecture: str) -> None:
    """Rows whose drafts break off at different places go on beside each other."""
    model = tiny(architecture)
    expected = theirs(model)
    drafts = [
        answer[: row % 5] + [39 - token for token in answer[row % 5 :]]
        for row, answer in enumerate(expected)
    ]
    assert ours(model, drafts=drafts) == expected


def test_a_window_takes_no_draft() -> None:
    model = tiny("gemma3")
    expected = theirs(model)
    shapes = batch_shapes(model)
    ours(model)
    without = list(shapes)
    shapes.clear()
    assert ours(model, drafts=expected) == expected
    assert shapes == without


def test_samples_are_drawn_as_without_drafts() -> None:
    model = tiny("llama")
    expected = ours(model, decoding=SAMPLED, samples=[1] * 12)
    shapes = batch_shapes(model)
    settings: dict[str, Any] = {"decoding": SAMPLED, "samples": [1] * 12}
    assert ours(model, drafts=expected, **settings) == expected
    assert len(shapes) == 1
    assert ours(model, drafts=spoiled(expected), **settings) == expected
    assert ours(model, drafts=spoiled(expected), batch_size=3, **settings) == expected


def test_a_draft_ends_where_a_stop_string_does() -> None:
    model = tiny("llama")
    whole = theirs(model)
    stop_strings = sorted({words(answer)[4:9] for answer in whole if len(words(answer)) > 12})
    settings: dict[str, Any] = {
        "decoding": Decoding(stop_strings=stop_strings),
        "decode": words,
    }
    expected = ours(model, **settings)
    assert sum(map(len, expected)) < sum(map(len, whole))
    assert ours(model, drafts=whole, **settings) == expected


def test_drafts_that_are_mostly_wrong_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PASS_TOKENS", 30)  # a row or two in a pass
    model = tiny("llama")
    expected = theirs(model)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    wrong = [[39 - (answer or [0])[0]] * 20 for answer in expected]  # 39 - n is never n
    assert ours(model, drafts=wrong) == expected
    read = [length for length in lengths if length > 1]
    # 8 of a prompt and the most of a draft, 11; then 8 of a draft, which is the margin.
    assert read[0] == 8 + 11
    assert max(read[1:]) == 8 + 8


def answered(engine: NativeEngine, model: PreTrainedModel, **settings: Any) -> Sequence[str]:
    return engine.complete(
        model,
        PROMPTS,
        **{"max_new_tokens": 12, "eos_token_ids": EOS, "pad_token_id": PAD, "decode": words}
        | settings,
    )


def test_an_engine_tries_its_last_answers_while_the_model_changes() -> None:
    model = with_lora(tiny("llama"))
    engine = NativeEngine(batch_size=5)
    shapes = batch_shapes(model)
    first = answered(engine, model)
    num_passes = len(shapes)
    shapes.clear()
    assert answered(engine, model) == first
    assert len(shapes) == 3  # twelve rows, five at a time
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator())
    shapes.clear()
    second = answered(engine, model)
    assert second != first
    assert len(shapes) < num_passes
    assert second == answered(NativeEngine(batch_size=5, drafts=False), model)


def test_answers_in_a_state_are_those_of_the_engine() -> None:
    model = tiny("llama")
    expected = theirs(model)
    engine = NativeEngine(batch_size=12)
    texts = answered(engine, model)
    assert engine.earlier is not None
    kept = io.BytesIO()
    torch.save(engine.earlier.state_dict(), kept)
    kept.seek(0)
    other = NativeEngine(batch_size=12)
    assert other.earlier is not None
    other.earlier.load_state_dict(torch.load(kept, weights_only=True))
    shapes = batch_shapes(model)
    assert answered(other, model) == texts
    assert len(shapes) == 1
    assert [list(other.earlier.of(prompt)) for prompt in PROMPTS] == expected


def test_only_greedy_answers_to_prompts_that_come_again_are_kept() -> None:
    model = tiny("llama")
    for settings in ({"decoding": SAMPLED}, {"samples": [0] * 12}):
        engine = NativeEngine(batch_size=12)
        answered(engine, model, **settings)
        assert engine.earlier is not None
        assert engine.earlier.state_dict()["keys"] == []
    engine = NativeEngine(batch_size=12, drafts=False)
    answered(engine, model)
    assert engine.earlier is None
