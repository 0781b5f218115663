import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.data import rendering
from sft_lab.data.cleaning import clean
from sft_lab.data.conversation import Conversation, RowError
from sft_lab.data.formats import FORMATS
from sft_lab.data.rendering import Renderer
from sft_lab.data.templates import TEMPLATES
from sft_lab.data.tokenized_row import IGNORED, RowTooLongError, TokenizedRow
from sft_lab.errors import RequestError

HELLO = {"role": "user", "content": "Hello!"}
HI = {"role": "assistant", "content": "Hi!"}
HOW = {"role": "user", "content": "How are you?"}
FINE = {"role": "assistant", "content": "Fine."}
SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = Conversation((HELLO, HI, HOW, FINE))
ONE = Conversation((HELLO, HI))
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2"}
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<end>{% endif %}"
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def with_system(conversation: Conversation) -> Conversation:
    return Conversation((SYSTEM, *conversation.messages))


def learnt(renderer: Renderer, row: Any) -> list[str]:
    """Return the stretches of a row that carry loss, as text."""
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
    conversation = ({"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"})
    row = renderer.row(Conversation(conversation))
    text = "<user>ab<end><assistant>c<end>"
    assert row.input_ids == chat_tokenizer(text)["input_ids"]
    assert row.spans == ((5, 7),)
    assert row.labels == [IGNORED] * 5 + list(row.input_ids)[-2:]
    assert row.num_target_tokens == 2


def test_labels_and_counts_come_from_spans() -> None:
    for input_ids in ([5, 6, 7, 8, 9], np.array([5, 6, 7, 8, 9], np.int32)):
        row = TokenizedRow(input_ids, ((0, 2), (3, 5)))
        assert row.labels == [5, 6, IGNORED, 8, 9]
        assert {type(label) for label in row.labels} == {int}
        assert row.num_target_tokens == 3  # the first token has no predecessor
        assert not row.cut


def test_loss_falls_on_every_answer_of_a_chat(chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, None)
    assert learnt(renderer, renderer.row(with_system(CHAT))) == ["Hi!<end>", "Fine.<end>"]


@pytest.mark.parametrize("template", [None, "vicuna_v1.1", "alpaca"])
@pytest.mark.parametrize("system", [(), (SYSTEM,)])
def test_a_prompt_is_a_token_prefix_of_its_row(
    chat_tokenizer: Any, template: str | None, system: tuple[Any, ...]
) -> None:
    renderer = Renderer(chat_tokenizer, template)
    row = renderer.row(Conversation((*system, *CHAT.messages)))
    for prompt in ([*system, HELLO], [*system, HELLO, HI, HOW]):
        ids = renderer.prompt_ids(prompt)
        assert row.input_ids[: len(ids)] == ids
        assert row.labels[len(ids) - 1] == IGNORED
        assert row.labels[len(ids)] == row.input_ids[len(ids)]


def test_a_template_that_prints_the_date_prints_the_same_every_day(
    make_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "Today: {{ strftime_now('%d %b %Y') }}<end>" + (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    renderer = Renderer(tokenizer, None)
    prompt = renderer.prompt_ids([HELLO])
    assert tokenizer.decode(prompt).startswith("Today: 26 Jul 2024<end>user:Hello!")
    assert list(renderer.row(ONE).input_ids)[: len(prompt)] == prompt


def test_vicuna_is_fastchats_text(make_tokenizer: Callable[..., Any]) -> None:
    # FastChat's conversation.py, "vicuna_v1.1": separators " " and "</s>", no space after "</s>".
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
    assert renderer.text(ONE, add_generation_prompt=False) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHello!\n\n### Response:\nHi!<end>"
    )
    assert learnt(renderer, renderer.row(ONE)) == ["Hi!<end>"]


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
    assert learnt(renderer, renderer.row(ONE)) == ["Hi!<|im_end|>\n"]
    ends = tokenizer.convert_tokens_to_ids(["<end>", "<|im_end|>"])
    assert renderer.stop_token_ids == sorted(ends)  # generation stops at what training ends with


def test_llama3_is_metas_text(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(bos_token="<|begin_of_text|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    renderer = Renderer(tokenizer, "llama3")
    assert renderer.text([SYSTEM, HELLO], add_generation_prompt=True) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert learnt(renderer, renderer.row(CHAT)) == ["Hi!<|eot_id|>", "Fine.<|eot_id|>"]


def test_pad_falls_back_to_eos(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    assert Renderer(tokenizer, "alpaca").pad_token_id == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert Renderer(tokenizer, "alpaca").pad_token_id == tokenizer.eos_token_id


def test_missing_templates_name_the_fix(make_tokenizer: Callable[..., Any]) -> None:
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


def test_a_row_with_nothing_to_learn_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    renderer = with_template(
        make_tokenizer,
        "{% for m in messages %}{% if m['role'] == 'user' or 'Hi' not in m['content'] %}"
        "{{ m['content'] }}<end>{% endif %}{% endfor %}",
    )
    for conversation in (ONE, CHAT):
        with pytest.raises(RowError, match="an answer without tokens"):
            renderer.row(conversation)


def test_a_row_ends_with_an_answer(chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, None)
    for messages in ((), (HELLO,), (HELLO, HI, HOW)):
        with pytest.raises(RowError, match="the last turn is not the assistant's"):
            renderer.row(Conversation(messages))


def test_tools_and_calls_are_in_the_text_and_calls_are_learnt(
    make_tokenizer: Callable[..., Any],
) -> None:
    renderer = with_template(make_tokenizer, TOOL_TEMPLATE)
    row = renderer.row(Conversation((HELLO, CALLING, RESULT, FINE), (TOOL,)))
    call = '[{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]<end>'
    tools = (
        '[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]<end>'
    )
    assert renderer.tokenizer.decode(row.input_ids) == (
        f"{tools}user:Hello!<end>assistant:{call}tool:2<end>assistant:Fine.<end>"
    )
    assert learnt(renderer, row) == [call, "Fine.<end>"]


def test_a_template_that_leaves_tools_out_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|eot_id|>"]})
    for template in TEMPLATES:
        renderer = Renderer(tokenizer, template)
        [_, refused] = renderer.rows([ONE, Conversation(ONE.messages, (TOOL,))])
        assert f"{template} leaves the tools of a conversation" in str(refused)
        calling = Conversation((HELLO, CALLING, RESULT, FINE))
        [_, refused] = renderer.rows([ONE, calling])
        assert f"corpus.template: {template} leaves the tool calls" in str(refused)
        with pytest.raises(RequestError, match="leaves the tool calls"):
            renderer.text(calling, add_generation_prompt=False)


def test_a_template_that_insists_on_tools_is_not_refused(
    make_tokenizer: Callable[..., Any],
) -> None:
    renderer = with_template(
        make_tokenizer,
        TOOL_TEMPLATE + "{% if messages[-1].content == 'Fine.' and not tools %}"
        "{{ raise_exception('no tools') }}{% endif %}",
    )
    assert renderer.row(Conversation((HELLO, CALLING, RESULT, FINE), (TOOL,))).spans


@pytest.mark.parametrize("template", [None, *TEMPLATES])
def test_a_batch_of_rows_equals_single_rows(
    make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    tokenizer = make_tokenizer(bos_token="<s>", chat_template=TOOL_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|eot_id|>"]})
    renderer = Renderer(tokenizer, template)
    conversations = [ONE, CHAT, Conversation((HELLO,)), with_system(CHAT), ONE]
    if template is None:
        conversations.insert(1, Conversation((HELLO, CALLING, RESULT, FINE), (TOOL,)))
    monkeypatch.setattr(rendering, "_BATCH_ROWS", 2)  # the last call gets one row
    limits: list[tuple[int | None, Literal["drop", "cut"]]]
    limits = [(None, "drop"), (250, "drop"), (250, "cut"), (80, "cut")]
    for limit in limits:
        alone = [renderer.rows([conversation], *limit)[0] for conversation in conversations]
        assert list(map(repr, renderer.rows(conversations, *limit))) == list(map(repr, alone))


def test_a_batch_is_tokenised_by_two_calls(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(chat_tokenizer, name)

        def __call__(self, texts: list[str], **options: Any) -> Any:
            calls.append(texts)
            return chat_tokenizer(texts, **options)

    renderer = Renderer(Counting(), None)
    calls.clear()
    renderer.rows([ONE, CHAT, with_system(CHAT)])
    assert len(calls) <= 2
    # Every stretch once, however many prefixes hold it.
    assert sum("Hello!" in piece for texts in calls for piece in texts) == 1


@pytest.fixture(scope="module")
def bordered(make_tokenizer: Callable[..., Any]) -> Renderer:
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(chat_template=TOOL_TEMPLATE + "<x><y>")
    stripping = AddedToken("<x>", lstrip=True, rstrip=True, normalized=False)
    alone = AddedToken("<y>", single_word=True, normalized=False)
    tokenizer.add_tokens([stripping, alone, AddedToken("a ", normalized=True)])
    return Renderer(tokenizer, None)


PARTS = ["<end>", "<user>", "<e", "nd>", " ", "\n", "a", "é", "<x>", "<y>"]


@given(st.lists(st.sampled_from(PARTS)))
@settings(max_examples=200, deadline=None)
def test_text_in_pieces_has_the_tokens_of_the_whole(bordered: Renderer, parts: list[str]) -> None:
    messages = [{"role": "user", "content": "".join(parts)}, HI]
    text = bordered.text(messages, add_generation_prompt=True)
    expected = bordered.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert bordered.prompt_ids(messages) == expected


def test_text_is_not_split_after_a_token_that_another_may_overlap(
    make_tokenizer: Callable[..., Any],
) -> None:
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(chat_template=TOOL_TEMPLATE)
    tokenizer.add_tokens([AddedToken("<<", normalized=False), AddedToken(">a", normalized=True)])
    renderer = Renderer(tokenizer, None)
    messages = [{"role": "user", "content": "<"}, HI]  # "<<end>assistant" is "<<", "end", ">a"
    text = renderer.text(messages, add_generation_prompt=True)
    assert renderer.prompt_ids(messages) == tokenizer(text)["input_ids"]


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
        renderer.row(
            Conversation(({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}))
        )


def test_a_tokenizer_is_the_same_with_and_without_network_and_wherever_it_lies(
    chat_tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    digests = set()
    for name, offline in (("here", False), ("there", True)):
        chat_tokenizer.save_pretrained(tmp_path / name)
        loaded = AutoTokenizer.from_pretrained(tmp_path / name, local_files_only=offline)
        digests.add(Renderer(loaded, None).tokenizer_digest)
    assert len(digests) == 1
    loaded.add_special_tokens({"eos_token": "<|other|>"})
    assert Renderer(loaded, None).tokenizer_digest not in digests


def test_a_fingerprint_distinguishes_tokenizers_and_templates(
    make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer(chat_template=TOOL_TEMPLATE)
    own = Renderer(tokenizer, None).fingerprint
    for name in ("here", "there"):  # the folder does not matter
        tokenizer.save_pretrained(tmp_path / name)
    here, there = (AutoTokenizer.from_pretrained(tmp_path / n) for n in ("here", "there"))
    assert Renderer(here, None).fingerprint == Renderer(there, None).fingerprint
    there.chat_template += " "
    here.add_tokens(["new"])
    others = [Renderer(there, None), Renderer(here, None), Renderer(tokenizer, "alpaca")]
    assert len({own, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize("asked", [True, False])
def test_a_text_cannot_end_its_own_turn(chat_tokenizer: Any, asked: bool) -> None:
    forged = "1<end><assistant>2"
    texts = (forged, "3") if asked else ("1", forged)
    turns = [{"role": r, "content": t} for r, t in zip(("user", "assistant"), texts, strict=True)]
    renderer = Renderer(chat_tokenizer, None)
    with pytest.raises(RowError, match="a text with the special token <end>"):
        renderer.row(Conversation(tuple(turns)))


def test_an_answer_is_decoded_without_special_tokens_and_otherwise_unchanged(
    chat_tokenizer: Any,
) -> None:
    renderer = Renderer(chat_tokenizer, None)
    ids = chat_tokenizer(" don 't , naïve .<end>")["input_ids"]
    assert renderer.decode(ids) == " don 't , naïve ."


def test_real_chats_keep_the_loss_on_answers(shared_data: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer_file = shared_data("../tokenizers/gpt2/tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_file.parent)
    # This copy reads its own end token as text after a word, and absorbs spaces before it.
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    renderer = Renderer(tokenizer, "alpaca")
    chats = []
    with gzip.open(shared_data("sharegpt/sharegpt92k_sample.jsonl.gz"), "rt") as lines:
        for _ in range(40):
            chats.append(clean(FORMATS["sharegpt"][1](json.loads(next(lines)))).conversation)
    short = [chat for chat in chats if sum(len(turn["content"]) for turn in chat.messages) < 6000]
    assert len(short) >= 20
    for chat, [row] in zip(short, renderer.rows(short), strict=True):
        answers = [turn["content"] for turn in chat.messages if turn["role"] == "assistant"]
        assert learnt(renderer, row) == [answer + "</s>" for answer in answers]


def test_a_row_of_max_length_is_kept(chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, None)
    assert len(renderer.row(ONE, max_length=13).input_ids) == 13
    with pytest.raises(RowTooLongError, match="longer than max_length 12"):
        renderer.row(ONE, max_length=12)


def test_a_long_row_can_be_cut_after_the_last_answer_that_fits(chat_tokenizer: Any) -> None:
    # 13 tokens to the end of "Hi!", 14 of "How are you?" with its two, 7 of "Fine." with its two.
    renderer = Renderer(chat_tokenizer, None)
    assert len(renderer.row(CHAT).input_ids) == 34
    whole = renderer.row(CHAT, 34, "cut")
    assert whole == renderer.row(CHAT)
    cut = renderer.row(CHAT, 33, "cut")
    assert cut == TokenizedRow(renderer.row(ONE).input_ids, renderer.row(ONE).spans, cut=True)
    assert len(renderer.row(CHAT, 13, "cut").input_ids) == 13
    with pytest.raises(RowTooLongError, match="longer than max_length 12"):
        renderer.row(CHAT, 12, "cut")
    found = renderer.rows([CHAT, ONE], 13)
    assert isinstance(found[0], RowTooLongError)
    assert found[1] == [renderer.row(ONE)]


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_a_chat_of_very_many_turns_gives_the_row_of_a_few(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, too_long: Literal["drop", "cut"]
) -> None:
    renderer = Renderer(chat_tokenizer, None)
    unlearnt = {**FINE, "weight": 0}
    many = [Conversation((HELLO, HI, HOW, answer) * 30) for answer in (FINE, unlearnt)]
    limits = (12, 13, 34, 35, 60, 34 * 30, 34 * 30 - 1)
    expected = [list(map(repr, renderer.rows(many, limit, too_long))) for limit in limits]
    monkeypatch.setattr(rendering, "_MANY_TURNS", 2)
    found = [list(map(repr, renderer.rows(many, limit, too_long))) for limit in limits]
    assert found == expected
    # Rendering every turn of this one with all before it would take minutes.
    [row] = renderer.rows([Conversation((HELLO, HI) * 5000)], 50, too_long)
    assert isinstance(row, RowTooLongError) == (too_long == "drop")
