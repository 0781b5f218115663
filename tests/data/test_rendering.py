from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_lab.data.corpus import load_tokenizer
from sft_lab.data.formats import RowError
from sft_lab.data.rendering import IGNORED, TEMPLATES, Renderer, RowTooLongError
from sft_lab.data.sources import Source, read_source
from sft_lab.errors import RequestError

HELLO = {"role": "user", "content": "Hello!"}
HI = {"role": "assistant", "content": "Hi!"}
HOW = {"role": "user", "content": "How are you?"}
FINE = {"role": "assistant", "content": "Fine."}
SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = (HELLO, HI, HOW, FINE)


def learnt(renderer: Renderer, row: Any) -> list[str]:
    """The stretches of a row that carry loss, as text."""
    stretches: list[list[int]] = [[]]
    for token_id, label in zip(row.input_ids, row.labels, strict=True):
        if label == IGNORED:
            stretches.append([])
        else:
            assert label == token_id
            stretches[-1].append(token_id)
    return [renderer.tokenizer.decode(stretch) for stretch in stretches if stretch]


def test_loss_falls_on_answers_and_their_end_tokens(chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, None)
    row = renderer.row(({"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}))
    text = "<user>ab<end><assistant>c<end>"
    assert row.input_ids == chat_tokenizer(text)["input_ids"]
    assert row.labels == [IGNORED] * 5 + row.input_ids[-2:]
    assert row.num_target_tokens == 2


def test_loss_falls_on_every_answer_of_a_chat(chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, None)
    assert learnt(renderer, renderer.row((SYSTEM, *CHAT))) == ["Hi!<end>", "Fine.<end>"]


@pytest.mark.parametrize("template", [None, "vicuna_v1.1", "alpaca"])
@pytest.mark.parametrize("system", [(), (SYSTEM,)])
def test_a_prompt_is_a_token_prefix_of_its_row(
    chat_tokenizer: Any, template: str | None, system: tuple[Any, ...]
) -> None:
    renderer = Renderer(chat_tokenizer, template)
    row = renderer.row((*system, *CHAT))
    for prompt in ([*system, HELLO], [*system, HELLO, HI, HOW]):
        ids = renderer.prompt_ids(prompt)
        assert row.input_ids[: len(ids)] == ids
        assert row.labels[len(ids) - 1] == IGNORED
        assert row.labels[len(ids)] == row.input_ids[len(ids)]


def test_vicuna_is_fastchats_text(make_tokenizer: Callable[..., Any]) -> None:
    # FastChat's conversation.py, "vicuna_v1.1": separators " " and "</s>", no space behind "</s>".
    renderer = Renderer(make_tokenizer(bos_token="<s>", eos_token="</s>"), "vicuna_v1.1")
    assert renderer.text(CHAT, add_generation_prompt=False) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: Hello! ASSISTANT: Hi!</s>USER: How are you? ASSISTANT: Fine.</s>"
    )
    assert renderer.text([SYSTEM, HELLO], add_generation_prompt=True) == (
        "<s>Be brief. USER: Hello! ASSISTANT:"
    )
    assert learnt(renderer, renderer.row(CHAT)) == [" Hi!</s>", " Fine.</s>"]


def test_alpaca_is_stanfords_text(chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, "alpaca")
    assert renderer.text([HELLO, HI], add_generation_prompt=False) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHello!\n\n### Response:\nHi!<end>"
    )
    assert learnt(renderer, renderer.row((HELLO, HI))) == ["Hi!<end>"]


def test_chatml_needs_its_end_token(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(RequestError, match=r"chatml ends an answer with '<\|im_end\|>\\n', in wh"):
        Renderer(tokenizer, "chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    renderer = Renderer(tokenizer, "chatml")
    assert renderer.text([SYSTEM, HELLO], add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    )
    assert learnt(renderer, renderer.row((HELLO, HI))) == ["Hi!<|im_end|>\n"]
    ends = tokenizer.convert_tokens_to_ids(["<end>", "<|im_end|>"])
    assert renderer.stop_token_ids == sorted(ends)  # generation stops at what training ends with


def test_pad_falls_back_to_eos(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    assert Renderer(tokenizer, "alpaca").pad_token_id == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert Renderer(tokenizer, "alpaca").pad_token_id == tokenizer.eos_token_id


def test_templates_that_are_not_there_name_the_fix(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    known = ", ".join(TEMPLATES)
    with pytest.raises(RequestError, match=rf"has no chat template; name one of {known}"):
        Renderer(tokenizer, None)
    with pytest.raises(RequestError, match=rf"unknown template 'llama'; known are {known}"):
        Renderer(tokenizer, "llama")
    tokenizer.eos_token = None
    with pytest.raises(RequestError, match=r"has no eos token.*name a tokenizer that has one"):
        Renderer(tokenizer, "alpaca")


def with_template(make_tokenizer: Callable[..., Any], template: str) -> Renderer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Renderer(tokenizer, None)


def test_a_template_that_rewrites_earlier_turns_is_refused(
    make_tokenizer: Callable[..., Any],
) -> None:
    # As templates do that cut the reasoning from all answers but the last.
    renderer = with_template(
        make_tokenizer,
        "{% for m in messages %}{{ m['role'] + ':' }}{{ m['content'] if loop.last else 'cut' }}"
        "<end>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    )
    with pytest.raises(RequestError, match="does not render turn 2 as an extension of the turns"):
        renderer.row(CHAT)


def test_a_template_that_refuses_a_role_is_named(make_tokenizer: Callable[..., Any]) -> None:
    renderer = with_template(
        make_tokenizer,
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m['content'] }}<end>{% endfor %}",
    )
    with pytest.raises(RequestError, match="cannot render the roles system, user: no system"):
        renderer.text([SYSTEM, HELLO], add_generation_prompt=True)


def test_a_template_without_an_end_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(RequestError, match=r"ends an answer with '\\n', in which"):
        with_template(
            make_tokenizer, "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
        )


def test_a_row_with_nothing_to_learn_cannot_pass(make_tokenizer: Callable[..., Any]) -> None:
    renderer = with_template(
        make_tokenizer,
        "{% for m in messages %}{% if m['role'] == 'user' or 'Hi' not in m['content'] %}"
        "{{ m['content'] }}<end>{% endif %}{% endfor %}",
    )
    for conversation in ((HELLO, HI), CHAT):
        with pytest.raises(RowError, match="an answer of no token"):
            renderer.row(conversation)


def test_tokens_that_merge_across_the_border_are_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({":": 0, "a": 1, ":a": 2, "q": 3, "<end>": 4}, [(":", "a")]))
    tokenizer.add_special_tokens(["<end>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] + ':' }}"
        "{% else %}{{ m['content'] }}<end>{% endif %}{% endfor %}"
    )
    renderer = Renderer(fast, None)
    with pytest.raises(RowError, match="tokens merge across the border"):
        renderer.row(({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}))


def test_an_answer_is_decoded_without_special_tokens_and_else_to_the_letter(
    chat_tokenizer: Any,
) -> None:
    renderer = Renderer(chat_tokenizer, None)
    ids = chat_tokenizer(" don 't , naïve .<end>")["input_ids"]
    assert renderer.decode(ids) == " don 't , naïve ."


def test_real_chats_keep_the_loss_on_answers(shared_data: Callable[[str], Path]) -> None:
    tokenizer_file = shared_data("../tokenizers/gpt2/tokenizer.json")
    renderer = Renderer(load_tokenizer(str(tokenizer_file.parent)), "alpaca")
    path = shared_data("sharegpt/sharegpt92k_sample.jsonl.gz")
    chats = read_source("general", Source(str(path))).conversations[:40]
    short = [chat for chat in chats if sum(len(turn["content"]) for turn in chat) < 6000]
    assert len(short) >= 20
    for chat in short:
        answers = [turn["content"] for turn in chat if turn["role"] == "assistant"]
        stretches = learnt(renderer, renderer.row(chat))
        # This tokenizer's end token takes the space in front of it along.
        assert [text.rstrip() for text in stretches] == [
            answer.rstrip() + "<|endoftext|>" for answer in answers
        ]


def test_max_length_is_the_longest_row_that_passes(chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, None)
    assert len(renderer.row((HELLO, HI), max_length=13).input_ids) == 13
    with pytest.raises(RowTooLongError, match="longer than max_length 12"):
        renderer.row((HELLO, HI), max_length=12)
