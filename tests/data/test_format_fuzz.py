"""Malformed rows: each becomes a usable conversation, or an error that is counted."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sft_lab.data.cleaning import clean
from sft_lab.data.conversation import RowError, sample_digest
from sft_lab.data.formats import FORMATS
from sft_lab.data.rendering import Renderer

WORLD = Path(__file__).parents[2] / "sft_lab" / "world" / "base"
ROLES = {"system", "user", "assistant", "tool"}

WORDS = ["", " \n", "q", "<|end|>", "<|assistant|>", "\ud83d", "\ude00", "é\u2028\0", "{}", "[{}]"]
TEXTS = st.sampled_from(WORDS) | st.text(st.characters(codec=None), max_size=8)
HUGE = st.sampled_from(["a" * 20_000, "ab " * 20_000, "\ud83d" * 20_000])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from([b"bytes", date(2024, 1, 1)])  # as Parquet may give
)
KEYS = ["from", "value", "role", "content", "name", "tools", "tool_calls", "tool_call_id"]
KEYS += ["function", "arguments", "parameters", "messages", "conversations"]
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=4)
        | inner.map(lambda value: [value] * 3)
    ),
    max_leaves=8,
)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return mostly usual values: rows of nothing but junk fail at their first key."""
    odd = JUNK | HUGE | st.sampled_from([90, 150]).map(nested)
    return st.integers(0, 11).flatmap(lambda number: odd if number == 5 else usual)


def some_of(keys: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with these keys, of which one is missing now and then."""
    filled = st.fixed_dictionaries({key: mostly(value) for key, value in keys.items()})
    removed = st.sets(st.sampled_from(sorted(keys)), max_size=1)
    drop = st.integers(0, 11).flatmap(lambda number: removed if number == 5 else st.just(set()))
    return st.builds(
        lambda row, missing: {key: row[key] for key in row if key not in missing}, filled, drop
    )


CONTENTS = st.sampled_from(["q", "a", "1 + 1"]) | TEXTS
FUNCTIONS = some_of({"name": st.just("add"), "arguments": st.sampled_from([{"a": 1}, "{}"])})
CALLS = st.lists(FUNCTIONS | some_of({"function": FUNCTIONS}), max_size=2)
SPEAKERS = st.sampled_from(["human", "gpt", "user", "chatgpt", "assistant", "system", "bing"])
SAID = st.sampled_from([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])
SHAREGPT_TURNS = st.lists(SAID | mostly(some_of({"from": SPEAKERS, "value": CONTENTS})), max_size=6)
MESSAGE_ROLES = st.sampled_from([*sorted(ROLES), "developer", "function"])
CALLING = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {}}]}
USUAL = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    CALLING,
    {"role": "tool", "content": "2"},
]
UNUSUAL = some_of(
    {
        "role": MESSAGE_ROLES,
        "content": CONTENTS,
        "name": st.none() | TEXTS,
        "tool_calls": st.none() | CALLS,
        "tool_call_id": st.none() | TEXTS,
    }
)
MESSAGES = st.lists(st.sampled_from(USUAL) | mostly(UNUSUAL), max_size=6)
# Random roles seldom form a dialogue, so half of them follow a valid beginning.
MESSAGES |= MESSAGES.map(lambda turns: [*USUAL[:1], *USUAL[2:], USUAL[1], *turns])
ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "messages": some_of({"messages": MESSAGES}) | some_of({"messages": MESSAGES, "tools": CALLS}),
    "sharegpt": some_of({"conversations": SHAREGPT_TURNS}),
    "alpaca": some_of({"instruction": CONTENTS, "input": st.none() | CONTENTS, "output": CONTENTS}),
    "gsm8k": some_of({"question": CONTENTS, "answer": CONTENTS}),
    "rft": some_of({"query": CONTENTS, "response": CONTENTS}),
    "prompt_completion": some_of({"prompt": CONTENTS, "completion": CONTENTS})
    | some_of({"prompt": MESSAGES, "completion": MESSAGES}),
    "orca": some_of({"system_prompt": CONTENTS, "question": CONTENTS, "response": CONTENTS}),
    "dolly": some_of({"instruction": CONTENTS, "context": CONTENTS, "response": CONTENTS}),
}


@pytest.fixture(scope="module")
def world() -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(WORLD), None)


@pytest.fixture(scope="module")
def calling(make_tokenizer: Callable[..., Any]) -> Renderer:
    """Return a renderer of tools, which the world's template does not support."""
    tokenizer = make_tokenizer(
        chat_template="{{ tools | tojson if tools else '' }}"
        "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}"
        "{{ m.tool_calls | tojson if m.tool_calls else '' }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return Renderer(tokenizer, None)


def test_every_format_is_tested() -> None:
    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize("name", sorted(ROWS))
@given(data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_a_malformed_row_trains_or_gives_the_reason(
    name: str, data: st.DataObject, world: Renderer, calling: Renderer
) -> None:
    row = data.draw(ROWS[name])
    try:
        conversation = clean(FORMATS[name][1](row)).conversation
    except RowError as fault:
        reason = str(fault)
    else:
        reason = ""
    if reason:
        assert len(reason.encode()) < 300  # rows are counted by reason, so none quotes a row
        return
    roles = [message["role"] for message in conversation.messages]
    assert set(roles) <= ROLES
    assert roles[-1] == "assistant"
    assert next(role for role in roles if role != "system") == "user"
    assert clean(conversation).repairs == ()
    assert len(sample_digest(conversation)) == 64
    called = any(message.get("tool_calls") for message in conversation.messages)
    renderer = calling if conversation.tools or called else world
    texts = list(conversation.strings)
    try:
        tokenized = renderer.row(conversation)
    except RowError as fault:
        special = str(fault).removeprefix("a text with the special token ")
        if special == "every answer has weight 0":
            assert name == "prompt_completion"  # the only one whose rows here have weights
            return
        assert special in ("<|end|>", "<|assistant|>")
        assert any(special in text for text in texts)
        return
    trained = [m for m in conversation.messages if m["role"] == "assistant" and "weight" not in m]
    assert tokenized.num_target_tokens >= len(trained) > 0


JUNK_VALUES = {
    "null": None,
    "number": 1.5,
    "endless": 10**5000,
    "empty": "",
    "half": "\ud83d",
    "bytes": b"x",
    "list": [],
    "lists": [[]],
    "nulls": [None],
    "object": {},
    "objects": [{}],
    "deep": nested(100_000),
}


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("junk", sorted(JUNK_VALUES))
def test_junk_under_every_key_gives_a_reason(name: str, junk: str) -> None:
    keys = [*FORMATS[name][0], "tools", "input"]
    with pytest.raises(RowError):
        clean(FORMATS[name][1](dict.fromkeys(keys, JUNK_VALUES[junk])))


@pytest.mark.parametrize("key", ["role", "content", "name", "tool_calls", "tool_call_id"])
@pytest.mark.parametrize("junk", sorted({*JUNK_VALUES} - {"null", "empty", "list"}))
def test_junk_in_a_message_gives_a_reason(key: str, junk: str) -> None:
    answer = {"role": "assistant", "content": "a", key: JUNK_VALUES[junk]}
    with pytest.raises(RowError):
        clean(FORMATS["messages"][1]({"messages": [{"role": "user", "content": "q"}, answer]}))
