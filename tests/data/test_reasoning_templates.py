"""Templates that strip earlier reasoning, take arguments, or mark what is generated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, write_jsonl

from sft_lab.data.conversation import Conversation, RowError
from sft_lab.data.corpus import Corpus
from sft_lab.data.rendering import Renderer
from sft_lab.data.sources import Source
from sft_lab.data.tokenized_row import IGNORED, TokenizedRow
from sft_lab.errors import RequestError

# As Qwen3's: reasoning, which may be empty, is kept after the last question only, and
# enable_thinking=False ends the prompt after an empty block.
QWEN3 = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
# As SmolLM3's: {% generation %} around what the model writes.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
ASK, SAY = ({"role": "user", "content": text} for text in ("1?", "2?"))
ONE, TWO = ({"role": "assistant", "content": text} for text in ("one", "two"))
CHAT = Conversation((ASK, ONE, SAY, TWO))


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def renderer_of(template: str, **arguments: Any) -> Renderer:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return Renderer(tokenizer, None, arguments or None)


def text_of(renderer: Renderer, row: TokenizedRow) -> str:
    return str(renderer.tokenizer.decode(row.input_ids))


def learnt(renderer: Renderer, row: TokenizedRow) -> list[str]:
    return [renderer.tokenizer.decode(row.input_ids[start:end]) for start, end in row.spans]


def test_a_template_that_strips_earlier_reasoning_makes_a_row_of_every_answer() -> None:
    renderer = renderer_of(QWEN3)
    [rows] = renderer.rows([CHAT])
    assert [text_of(renderer, row) for row in rows] == [
        turn("user", "1?") + turn("assistant", f"{EMPTY}one"),
        turn("user", "1?")
        + turn("assistant", "one")
        + turn("user", "2?")
        + turn("assistant", f"{EMPTY}two"),
    ]
    assert [learnt(renderer, row) for row in rows] == [
        [f"{EMPTY}one<|im_end|>\n"],
        [f"{EMPTY}two<|im_end|>\n"],
    ]
    for row, messages in zip(rows, [(ASK,), (ASK, ONE, SAY)], strict=True):
        prompt = renderer.prompt_ids(messages)
        assert row.input_ids[: len(prompt)] == prompt


def test_reasoning_is_learnt_where_it_was_written() -> None:
    renderer = renderer_of(QWEN3)
    thought = {**ONE, "reasoning_content": "hm"}
    [rows] = renderer.rows([Conversation((ASK, thought, SAY, TWO))])
    assert learnt(renderer, rows[0]) == ["<think>\nhm\n</think>\n\none<|im_end|>\n"]
    assert "hm" not in text_of(renderer, rows[1])


def test_template_arguments_decide_rows_and_prompts_and_their_fingerprint() -> None:
    free, brief = renderer_of(QWEN3), renderer_of(QWEN3, enable_thinking=False)
    [rows] = brief.rows([CHAT])
    assert [learnt(brief, row) for row in rows] == [["one<|im_end|>\n"], ["two<|im_end|>\n"]]
    prompt = brief.prompt_ids([ASK])
    assert brief.tokenizer.decode(prompt).endswith(f"<|im_start|>assistant\n{EMPTY}")
    assert rows[0].input_ids[: len(prompt)] == prompt
    assert free.fingerprint != brief.fingerprint
    assert free.tokenizer_digest != brief.tokenizer_digest
    # What an export writes renders the same without the argument.
    exported = renderer_of(brief.template_source)
    assert exported.prompt_ids([ASK]) == prompt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"enable_thinkng": False},
            r"template_args.enable_thinkng: the tokenizer's template ta",
        ),
        ({"messages": []}, r"template_args.messages: the tokenizer's template takes no such"),
        ({"enable_thinking": {1}}, r"template_args.enable_thinking must be plain JSON, got \{1\}"),
    ],
)
def test_an_argument_that_the_template_does_not_read_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        renderer_of(QWEN3, **arguments)


def test_answers_without_weight_make_no_row_and_long_ones_are_cut_or_dropped() -> None:
    renderer = renderer_of(QWEN3)
    light = Conversation((ASK, {**ONE, "weight": 0}, SAY, TWO))
    [rows] = renderer.rows([light])
    assert [learnt(renderer, row) for row in rows] == [[f"{EMPTY}two<|im_end|>\n"]]
    [whole] = renderer.rows([CHAT])
    limit = len(whole[1].input_ids) - 1
    [cut] = renderer.rows([CHAT], limit, "cut")
    assert [learnt(renderer, row) for row in cut] == [[f"{EMPTY}one<|im_end|>\n"]]
    assert cut[0].cut
    [dropped] = renderer.rows([CHAT], limit, "drop")
    assert str(dropped) == f"longer than max_length {limit}"


def test_masks_are_those_of_transformers_where_a_template_marks_what_is_generated() -> None:
    renderer = renderer_of(MARKED)
    system = {"role": "system", "content": "Count."}
    for messages in ((ASK, ONE), (system, *CHAT.messages)):
        row = renderer.row(Conversation(messages))
        theirs = renderer.tokenizer.apply_chat_template(
            list(messages), return_dict=True, return_assistant_tokens_mask=True
        )
        assert list(row.input_ids) == theirs["input_ids"]
        assert [int(label != IGNORED) for label in row.labels] == theirs["assistant_masks"]


def test_a_row_that_the_template_refuses_is_an_error_of_that_row_alone() -> None:
    renderer = renderer_of(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        + MARKED
    )
    system = Conversation(({"role": "system", "content": "Be."}, ASK, ONE))
    first, refused, last = renderer.rows([CHAT, system, CHAT])
    assert first == last
    assert isinstance(refused, RowError)
    assert str(refused) == (
        "corpus.template: the tokenizer's template cannot render the roles system, user: no system "
        "turns"
    )


def test_a_prompt_that_its_row_does_not_begin_with_is_an_error_of_the_row() -> None:
    renderer = renderer_of(QWEN3.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>bot\n' }}"))
    [refused] = renderer.rows([CHAT])
    assert str(refused).startswith("a prompt that is not the beginning of its row")


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    def make(**settings: Any) -> Corpus:
        tokenizer = renderer_of(QWEN3).tokenizer
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        chats = [{"messages": [{**ASK, "content": f"{n}?"}, ONE, SAY, TWO]} for n in range(8)]
        path = write_jsonl(tmp_path / "rows.jsonl", chats)
        corpus = Corpus({"general": Source(str(path))}, str(tmp_path / "tokenizer"), **settings)
        corpus.load(["general"])
        return corpus

    return make


def test_rows_of_one_conversation_are_held_out_together_and_counted(
    corpus: Callable[..., Corpus],
) -> None:
    general = corpus(val_rows=3).loaded["general"]
    assert len(general.rows) == 16
    assert (general.report.rows, general.report.split) == (8, 8)
    assert general.report.repaired == {"made a row of every answer": 8}
    assert general.val_rows == 4
    held_out = {general.sample_ids[index] for index in general.ranked[: general.val_rows]}
    trained = {general.sample_ids[index] for index in general.trainable}
    assert len(held_out) == 2
    assert not held_out & trained


def test_template_arguments_come_from_the_config(corpus: Callable[..., Corpus]) -> None:
    brief = corpus(template_args={"enable_thinking": False})
    row = brief.loaded["general"].rows[0]
    [(start, end)] = row.spans
    assert brief.renderer.decode(list(row.input_ids[start:end])) == "one\n"
