"""Answers that begin with a draft: the same ones, in fewer passes."""

import io
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    EOS,
    GROUPED,
    PAD,
    PROMPTS,
    batch_shapes,
    ours,
    theirs,
    tiny,
    with_lora,
    words,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sft_lab.evaluation.generation import Decoding, NativeEngine, native
from sft_lab.evaluation.generation.drafts import Drafts, EarlierAnswers
from sft_lab.evaluation.generation.kv_cache import RoomyLayer

SAMPLED = Decoding(temperature=1.5, top_p=0.9, num_samples=3, seed=7)


def spoiled(answers: list[list[int]]) -> list[list[int]]:
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
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.extended), 5, 12])
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
    assert [rows for rows, _ in shapes] == [8, 4]  # a few first
    shapes.clear()
    # One answer of 12 tokens: its last four are wrong, one of them comes with the first pass.
    row = next(row for row, answer in enumerate(expected) if len(answer) == 12)
    drafts = [*expected[:row], expected[row][:8] + [39] * 4, *expected[row + 1 :]]
    assert 39 not in expected[row]
    assert ours(model, drafts=drafts) == expected
    assert shapes[2:] == [(1, len(PROMPTS[row]) + n) for n in (9, 10, 11)]


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


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_turn_by_length_take_no_draft(rope_type: str) -> None:
    """A pass over prompt and draft would turn the prompt as if the whole draft were its text."""
    kinds: dict[str, dict[str, Any]] = {
        "dynamic": {"factor": 2.0},
        "longrope": {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0},
    }
    rope = {"rope_type": rope_type, "rope_theta": 10_000.0, **kinds[rope_type]}
    torch.manual_seed(0)
    config = LlamaConfig(**GROUPED, max_position_embeddings=6, rope_parameters=rope)
    config.original_max_position_embeddings = 6
    model = LlamaForCausalLM(config)
    shapes = batch_shapes(model)
    expected = ours(model, batch_size=1)
    without = list(shapes)
    shapes.clear()
    assert ours(model, batch_size=1, drafts=expected) == expected
    assert shapes == without


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drafts": [[5]] * 11}, "one for each of 12 greedy completions, got 11"),
        ({"drafts": [[5]] * 12, "decoding": SAMPLED}, "got 12 at temperature 1.5"),
    ],
)
def test_drafts_that_cannot_be_tried_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(tiny("llama"), **settings)


def test_long_rows_join_short_ones() -> None:
    """Short prompts with wrong drafts, then long ones: the batch grows to the left."""
    model = tiny("llama")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        lengths = [2] * 4 + torch.randint(10, 26, (4,), generator=generator).tolist()
        prompts = [torch.randint(5, 40, (n,), generator=generator).tolist() for n in lengths]
        expected = [ours(model, [prompt])[0] for prompt in prompts]
        wrong = [[39 - (answer or [0])[0]] * 30 for answer in expected[:4]]
        drafts = wrong + [[]] * 4
        assert ours(model, prompts, batch_size=4, drafts=drafts) == expected


def test_a_batch_with_drafts_keeps_within_its_tokens() -> None:
    model = tiny("llama")
    expected = theirs(model)
    shapes = batch_shapes(model)
    drafts = spoiled(expected)
    assert ours(model, batch_tokens=60, drafts=drafts) == expected
    assert max(rows * tokens for rows, tokens in shapes) <= 60
    # The longest row is a short prompt with its draft; the longest prompt waits and decides.
    shapes.clear()
    prompts = [[5, 6], [7] * 12, [8] * 12, [9] * 12]
    whole = ours(model, prompts)
    shapes.clear()
    assert ours(model, prompts, batch_tokens=60, drafts=[[39] * 11, [], [], []]) == whole
    assert max(rows * tokens for rows, tokens in shapes if rows > 1) <= 60


def test_between_passes_nothing_is_held_but_keys_and_values_of_rows_that_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPT-NeoX, whose keys and values are parts of a larger tensor, reads two prompts in a pass."""
    monkeypatch.setattr(native, "PASS_TOKENS", 16)
    layers: weakref.WeakSet[RoomyLayer] = weakref.WeakSet()
    made = RoomyLayer.__init__

    def make(layer: RoomyLayer) -> None:
        made(layer)
        layers.add(layer)

    monkeypatch.setattr(RoomyLayer, "__init__", make)
    prompts = [[5 + (row * 7 + place * 3) % 35 for place in range(8)] for row in range(6)]
    model = tiny("gpt_neox")
    expected = ours(model, prompts)
    assert all(expected)
    held: list[int] = []

    def count(module: Any, arguments: Any, settings: dict[str, Any]) -> None:
        if settings["input_ids"].shape[1] > 1:
            storages = [memory.untyped_storage() for layer in layers for memory in layer._memory]
            held.append(sum({s.data_ptr(): s.nbytes() for s in storages}.values()))

    model.register_forward_pre_hook(count, with_kwargs=True)
    assert ours(model, prompts) == expected
    # Of each row keys and values of two layers, 8 tokens of 32 float32 numbers.
    assert held == [rows * 2 * 2 * 8 * 32 * 4 for rows in (0, 2, 4)]
    held.clear()
    monkeypatch.setattr(native, "PASS_TOKENS", 40)  # two prompts with their drafts
    assert ours(model, prompts, drafts=expected) == expected
    assert held == [0] * len(held)  # every row has ended in the pass that has read it
    assert len(held) > 1


def test_only_what_was_tried_tells_how_much_of_drafts_is_right() -> None:
    drafts = Drafts([[], [6] * 30], max_new_tokens=21)
    drafts.record([[]], [0])
    assert [len(draft) for draft in drafts.of([1])] == [20]


def test_drafts_of_all_lengths_are_tried_first() -> None:
    drafts = Drafts([[5]] * 16 + [[]] * 4, max_new_tokens=21)
    rows = [19, *range(16), 16, 17, 18]
    first = list(range(0, 16, 2))
    assert drafts.order(rows) == [*first, 19, *range(1, 16, 2), 16, 17, 18]
    assert Drafts([[]] * 3, max_new_tokens=21).order([2, 0, 1]) == [2, 0, 1]


def test_wrong_drafts_of_the_longest_rows_do_not_hide_right_ones() -> None:
    model = tiny("llama")
    prompts = [[5 + (row * 7 + n * 3) % 35 for n in range(2 + row // 5)] for row in range(40)]
    expected = ours(model, prompts)
    wrong = [[39 - (answer or [0])[0]] * 20 for answer in expected[32:]]
    drafts = [*expected[:32], *wrong]
    steps: list[int] = []  # rows that are generated token by token

    def count(module: Any, arguments: Any, settings: dict[str, Any]) -> None:
        rows, tokens = settings["input_ids"].shape
        if tokens == 1:
            steps.append(rows)

    model.register_forward_pre_hook(count, with_kwargs=True)
    assert ours(model, prompts, drafts=drafts) == expected
    assert 0 < max(steps) <= 8


def test_where_drafts_are_wrong_from_the_start_few_passes_try_one() -> None:
    drafts = Drafts([[6] * 30] * 20, max_new_tokens=21)
    rows = list(range(20))
    first = drafts.of(rows)
    assert [len(draft) for draft in first] == [20] * 8
    drafts.record(first, [0] * 8)
    lengths = []
    for _ in range(8):
        tried = drafts.of(rows)
        lengths.append(len(tried[0]))
        drafts.record(tried, [0] * 20)
    assert lengths == [0, 0, 0, 2, 0, 0, 0, 2]
    drafts.record([[6, 6]] * 48, [2] * 48)  # from now on they are right: 96 tokens of 96 drafts
    assert [len(draft) for draft in drafts.of(rows)] == [4] * 20


def test_an_answer_that_is_the_draft_again_is_kept_once() -> None:
    earlier = EarlierAnswers()
    earlier.begin(step=0)
    earlier.keep([5], [6, 7])
    earlier.begin(step=10)
    earlier.keep([5], [8])
    earlier.keep([5], [6, 7])  # measured again
    assert earlier.state_dict()["answers"]["keys"] == []
    earlier.begin(step=20)
    assert list(earlier.of([5])) == [6, 7]


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
    monkeypatch.setattr(native, "PASS_TOKENS", 19)  # the first row and its draft
    model = tiny("llama")
    expected = theirs(model)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    wrong = [[39 - (answer or [0])[0]] * 20 for answer in expected]  # 39 - n is never n
    assert ours(model, drafts=wrong) == expected
    # Prompts of 8, 8, 7, 6, 5, 5, 4 and 3 tokens come first, then those of 7, 6, 4 and 3. The first
    # pass has 8 of a prompt and the most of a draft, 11. After it come prompts alone, and in every
    # fourth pass 2 of a draft, which is the margin.
    read = [length for length in lengths if length > 1]
    assert read == [8 + 11, 8, 6, 5, 7 + 2, 6]


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
    assert engine.earlier is not None
    shapes = batch_shapes(model)
    engine.earlier.begin(step=0)
    first = answered(engine, model)
    num_passes = len(shapes)
    shapes.clear()
    engine.earlier.begin(step=10)
    assert answered(engine, model) == first
    assert len(shapes) == 3  # twelve rows, five at a time
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator())
    shapes.clear()
    engine.earlier.begin(step=20)
    second = answered(engine, model)
    assert second != first
    assert len(shapes) < num_passes
    assert second == answered(NativeEngine(batch_size=5, drafts=False), model)


def test_an_evaluation_made_again_has_the_drafts_it_had() -> None:
    model = tiny("llama")
    expected = theirs(model)
    engine = NativeEngine(batch_size=12)
    assert engine.earlier is not None
    engine.earlier.begin(step=0)
    texts = answered(engine, model)
    kept = io.BytesIO()
    torch.save(engine.earlier.state_dict(), kept)
    kept.seek(0)
    other = NativeEngine(batch_size=12)
    assert other.earlier is not None
    other.earlier.load_state_dict(torch.load(kept, weights_only=True))
    shapes = batch_shapes(model)
    for step, passes in ((0, 12), (0, 12), (10, 2), (10, 2), (20, 2)):
        shapes.clear()
        other.earlier.begin(step)
        drafts = [list(other.earlier.of(prompt)) for prompt in PROMPTS]
        assert drafts == (expected if step else [[]] * 12)
        assert answered(other, model) == texts
        assert len(shapes) == passes  # 12 tokens, one by one, or in a pass of 8 rows and one of 4


def test_only_greedy_answers_to_prompts_that_come_again_are_kept() -> None:
    model = tiny("llama")
    one_sample = Decoding(temperature=1.5)
    for settings in ({"decoding": SAMPLED}, {"decoding": one_sample}, {"samples": [0] * 12}):
        engine = NativeEngine(batch_size=12)
        answered(engine, model, **settings)
        assert engine.earlier is not None
        assert engine.earlier.state_dict()["answers"]["keys"] == []
    engine = NativeEngine(batch_size=12, drafts=False)
    answered(engine, model)
    assert engine.earlier is None
