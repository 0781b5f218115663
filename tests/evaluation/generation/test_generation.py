import gc
from collections.abc import Callable, Sequence
from math import nan
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
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation import (
    Decoding,
    NativeEngine,
    TransformersContinuous,
    batches_longest_first,
    generate,
    make_engine,
)
from sft_lab.evaluation.generation.decoding import nucleus_tokens
from sft_lab.evaluation.generation.kv_cache import RoomyCache
from sft_lab.evaluation.generation.stop_strings import StopWatch, before_stop

# transformers' continuous batching runs on a CPU as well, if too slowly to be offered there.
ENGINES = [NativeEngine, pytest.param(TransformersContinuous, marks=pytest.mark.extended)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_those_of_transformers_one_by_one(architecture: str) -> None:
    model = tiny(architecture)
    expected = theirs(model)
    assert len({len(answer) for answer in expected}) > 2  # rows end at different times
    assert ours(model) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.extended), 3, 5])
def test_batches_that_are_refilled_change_no_answer(architecture: str, batch_size: int) -> None:
    model = tiny(architecture)
    expected = theirs(model)
    shapes = batch_shapes(model)
    assert ours(model, batch_size=batch_size) == expected
    assert max(rows for rows, _ in shapes) == batch_size


def test_waiting_prompts_take_the_places_of_ended_rows() -> None:
    model = tiny("llama")
    expected = theirs(model)
    shapes = batch_shapes(model)
    assert ours(model, batch_size=4) == expected
    # Batch by batch, each would go on until its last answer ends.
    order = sorted(range(12), key=lambda row: -len(PROMPTS[row]))
    steps = [[len(expected[row]) for row in order[n : n + 4]] for n in (0, 4, 8)]
    assert len(shapes) < sum(min(12, max(lengths) + 1) for lengths in steps) + 2
    # What no row attends to is not kept: no more than a prompt and its answer.
    assert max(tokens for _, tokens in shapes) <= max(map(len, PROMPTS)) + 12


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_spare_memory_of_the_cache_is_written_before_it_is_read(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    expected = theirs(model)
    monkeypatch.setattr(Tensor, "new_empty", lambda self, shape: self.new_full(shape, nan))
    assert ours(model, batch_size=batch_size) == expected
    # Drafts change the order, so that longer prompts join shorter ones.
    drafts = [answer[: 2 * (place % 5)] for place, answer in enumerate(expected)]
    assert ours(model, batch_size=batch_size, drafts=drafts) == expected


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_batch_keeps_within_its_tokens(architecture: str) -> None:
    model = tiny(architecture)
    expected = theirs(model)
    shapes = batch_shapes(model)
    # The longest prompts have 8 tokens, with room for 12: three rows.
    assert ours(model, batch_tokens=60) == expected
    assert max(rows for rows, _ in shapes) >= 3
    assert max(rows * tokens for rows, tokens in shapes) <= 60
    assert ours(model, batch_tokens=1) == expected  # a row alone, where none fits


def test_adapters_in_training_with_checkpointing() -> None:
    model = with_lora(tiny("llama"))
    expected = theirs(model)
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    assert ours(model) == expected
    assert model.is_activation_checkpointing
    with model.disable_adapter():
        assert ours(model) != expected


def test_modes_and_random_state_are_left_alone() -> None:
    model = tiny("llama").train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    ours(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_can_be_trained_after_it_has_generated(frozen: bool) -> None:
    # Positions of this kind are kept from one forward for the next.
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**GROUPED, max_position_embeddings=4, rope_parameters=rope)
    )
    modes = []
    model.register_forward_pre_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    ours(model.requires_grad_(not frozen))
    assert set(modes) == {frozen}
    model.requires_grad_(True)
    input_ids = torch.tensor(PROMPTS[:1])
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_modes_are_restored_after_an_error() -> None:
    model = tiny("llama").train()
    with pytest.raises(IndexError):
        ours(model, [[5, 99]])  # no such token
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_the_limit_cuts_and_the_end_is_not_returned() -> None:
    model = tiny("llama")
    long = ours(model)
    assert not {token for answer in long for token in answer} & set(EOS)
    short = generate(model, PROMPTS, max_new_tokens=2, eos_token_ids=EOS, pad_token_id=PAD)
    assert short == [answer[:2] for answer in long]


def test_no_key_is_kept_behind() -> None:
    model = tiny("llama")
    ours(model, batch_size=3)
    with pytest.raises(IndexError):
        ours(model, [[5, 99]])
    gc.collect()
    assert not [kept for kept in gc.get_objects() if isinstance(kept, RoomyCache)]


@pytest.mark.parametrize("prompts", [[], [[5], []]])
def test_empty_prompts_are_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="no empty one"):
        ours(tiny("llama"), prompts)


def test_batches_hold_every_prompt_once_longest_first() -> None:
    assert batches_longest_first([2, 7, 4, 7, 1], batch_size=2) == [[1, 3], [2, 0], [4]]
    assert batches_longest_first([], batch_size=2) == []
    with pytest.raises(ValueError, match="got 0"):
        batches_longest_first([1], batch_size=0)


# Sampling.

SAMPLED = Decoding(temperature=1.5, top_p=0.9, num_samples=3, seed=7)


def test_samples_depend_on_seed_prompt_and_number_alone() -> None:
    model = tiny("llama")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    together = ours(model, decoding=SAMPLED, samples=[2] * 12)
    assert torch.equal(torch.get_rng_state(), state)
    assert together != ours(model)
    torch.manual_seed(2)
    alone = [ours(model, [prompt], decoding=SAMPLED, samples=[2])[0] for prompt in PROMPTS]
    assert alone == together
    assert ours(model, decoding=SAMPLED, samples=[2] * 12, batch_size=5) == together
    assert ours(model, decoding=SAMPLED, samples=[1] * 12) != together
    other = Decoding(temperature=1.5, top_p=0.9, num_samples=3, seed=8)
    assert ours(model, decoding=other, samples=[2] * 12) != together


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (2.0, 0.3)])
def test_tokens_are_drawn_as_often_as_transformers_would(temperature: float, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(0)) * 2
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits))
    evenly = (torch.arange(10_000) + 0.5) / 10_000  # every draw as often as any other
    tokens = nucleus_tokens(logits.expand(10_000, -1), evenly, temperature=temperature, top_p=top_p)
    frequencies = torch.bincount(tokens, minlength=20) / 10_000
    torch.testing.assert_close(frequencies, warped.softmax(-1)[0], rtol=0, atol=2e-4)


def test_a_low_temperature_is_greedy() -> None:
    model = tiny("llama")
    assert ours(model, decoding=Decoding(temperature=1e-4)) == ours(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 5}, "at temperature 0 .* got num_samples 5"),
        ({"stop_strings": ["a", ""]}, r"got \['a', ''\]"),
        ({"stop_strings": "def"}, "must be a list of non-empty strings, got 'def'"),
    ],
)
def test_impossible_decoding_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Decoding(**settings)


# Stop strings.


def pieces(*texts: str) -> tuple[Callable[[Sequence[int]], str], list[int]]:
    """A decoder whose tokens are given byte strings, and the ids of all of them in order."""
    table = [text.encode("latin-1") for text in texts]

    def decode(token_ids: Sequence[int]) -> str:
        return b"".join(table[token_id] for token_id in token_ids).decode(errors="replace")

    return decode, list(range(len(table)))


@pytest.mark.parametrize(
    ("texts", "stop_strings", "ended_by"),
    [
        (["a", "b\n", "\nd", "ef", " g"], ["\n\ndef"], 3),  # over three tokens
        (["a", "x\ndef f"], ["\ndef"], 1),  # inside one
        (["a", "\nd", "ay", "\nde", "f"], ["\ndef"], 4),  # a beginning that came to nothing
        (["a", "aa", "b"], ["aab"], 2),  # a beginning inside another
        (["\xe2", "\x82", "\xac", "."], ["\u20ac"], 2),  # a character of three tokens
        (["\xe2", "\x82", "\xac.", "x"], ["."], 2),
        (["a", "b", "c"], ["d", "cd"], None),
    ],
)
def test_a_stop_string_is_found_with_the_token_that_completes_it(
    texts: list[str], stop_strings: list[str], ended_by: int | None
) -> None:
    decode, token_ids = pieces(*texts)
    watch = StopWatch(decode, stop_strings)
    found = [token_id for token_id in token_ids if watch.add(token_id)]
    assert (found[0] if found else None) == ended_by


def test_what_is_cut_off_does_not_depend_on_tokens() -> None:
    stop_strings = ["abc", "b"]
    whole = "xabc"
    assert before_stop(whole, stop_strings) == "xa"  # "b" is complete before "abc"
    for cut in (1, 2, 3):
        decode, token_ids = pieces(whole[:cut], whole[cut:])
        watch = StopWatch(decode, stop_strings)
        seen: list[int] = []
        for token_id in token_ids:
            seen.append(token_id)
            if watch.add(token_id):
                break
        assert before_stop(decode(seen), stop_strings) == "xa"


@pytest.mark.parametrize("engine_class", ENGINES)
def test_an_answer_ends_before_its_first_stop_string(engine_class: Any) -> None:
    engine, model = engine_class(5), tiny("llama")
    # The tokens of every answer's middle, without the border before and behind them.
    answers = [words(answer) for answer in ours(model)]
    stop_strings = sorted({answer[4:9] for answer in answers if len(answer) > 12})
    expected = [before_stop(answer, stop_strings) for answer in answers]
    assert sum(a != b for a, b in zip(answers, expected, strict=True)) > 4
    completions = engine.complete(
        model,
        PROMPTS,
        max_new_tokens=12,
        eos_token_ids=EOS,
        pad_token_id=PAD,
        decode=words,
        decoding=Decoding(stop_strings=stop_strings),
    )
    assert completions == expected


def test_a_row_ends_as_soon_as_its_stop_string_is_complete() -> None:
    model = tiny("llama")
    [answer] = ours(model, PROMPTS[:1])
    stop = words(answer[1:3])
    [stopped] = ours(model, PROMPTS[:1], decoding=Decoding(stop_strings=[stop]), decode=words)
    assert stopped == answer[:3]
    with pytest.raises(ValueError, match="needs decode"):
        ours(model, decoding=Decoding(stop_strings=[stop]))


# Engines.


def complete(engine: Any, model: PreTrainedModel, **settings: Any) -> list[str]:
    return engine.complete(
        model,
        PROMPTS,
        max_new_tokens=12,
        eos_token_ids=EOS,
        pad_token_id=PAD,
        decode=words,
        **settings,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ["llama", pytest.param("qwen2", marks=pytest.mark.extended)]
)
def test_engines_give_the_same_greedy_answers(architecture: str) -> None:
    model = with_lora(tiny(architecture)).train()
    plain = model.get_base_model()
    attention, modes = plain.config._attn_implementation, [m.training for m in model.modules()]
    state = torch.get_rng_state()
    expected = [words(answer) for answer in theirs(model)]
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    for engine in (NativeEngine(batch_size=5), TransformersContinuous(batch_size=5)):
        assert complete(engine, model) == expected
        assert plain.config._attn_implementation == attention
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("engine_class", ENGINES)
def test_samples_of_a_prompt_follow_each_other_and_come_again(engine_class: Any) -> None:
    engine, model = engine_class(5), tiny("llama")
    texts = complete(engine, model, decoding=SAMPLED)
    assert len(texts) == 3 * len(PROMPTS)
    assert len(set(texts[:3])) > 1
    assert complete(engine, model, decoding=SAMPLED) == texts
    if isinstance(engine, NativeEngine):
        first = ours(model, decoding=SAMPLED, samples=[1] * 12)
        assert texts[1::3] == [words(answer) for answer in first]
        assert complete(engine, model, decoding=SAMPLED, samples=[1] * 12) == texts[1::3]
    else:
        assert len(complete(engine, model, decoding=SAMPLED, samples=[1] * 12)) == 12


def test_continuous_batching_is_refused_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_engine("native", 8), NativeEngine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = make_engine("transformers_continuous", 8)
    with pytest.raises(RequestError, match="transformers_continuous needs CUDA, found none"):
        engine.check("base", rank=8, num_tokens=1)


@pytest.mark.gpu
def test_engines_agree_on_cuda_and_leave_no_memory_behind() -> None:
    model = tiny("llama").cuda()
    complete(NativeEngine(5), model)
    for engine in (NativeEngine(5), make_engine("transformers_continuous", 5)):
        before = torch.cuda.memory_allocated()
        assert complete(engine, model) == [words(answer) for answer in ours(model)]
        gc.collect()
        assert torch.cuda.memory_allocated() == before
