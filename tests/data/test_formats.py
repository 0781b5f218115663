import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_lab.data.cleaning import clean
from sft_lab.data.conversation import Conversation, RowError, sample_digest
from sft_lab.data.formats import FORMATS, detect

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
SCHEMA = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2", "name": "add", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("gsm8k", {"question": "q", "answer": "a"}, (USER, ASSISTANT)),
        ("rft", {"query": "q", "response": "a", "correct": True}, (USER, ASSISTANT)),
        ("prompt_completion", {"prompt": "q", "completion": "a"}, (USER, ASSISTANT)),
        ("alpaca", {"instruction": "q", "output": "a"}, (USER, ASSISTANT)),
        ("alpaca", {"instruction": "q", "input": "", "output": "a"}, (USER, ASSISTANT)),
        ("alpaca", {"instruction": "q", "input": None, "output": "a"}, (USER, ASSISTANT)),
        ("alpaca", {"instruction": "q", "input": " \n", "output": "a"}, (USER, ASSISTANT)),
        (
            "alpaca",
            {"instruction": "q", "input": "x", "output": "a", "response": "b"},
            ({"role": "user", "content": "q\n\nx"}, ASSISTANT),
        ),
        ("messages", {"messages": [SYSTEM, USER, ASSISTANT]}, (SYSTEM, USER, ASSISTANT)),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a"},
                    {"from": "user", "value": "q"},
                    {"from": "chatgpt", "value": "a"},
                ]
            },
            (SYSTEM, USER, ASSISTANT, USER, ASSISTANT),
        ),
    ],
)
def test_every_format_is_detected_and_read(name: str, row: dict[str, Any], expected: Any) -> None:
    assert detect(row) == name
    assert FORMATS[name][1](row) == Conversation(expected)


@pytest.mark.parametrize("tools", [[SCHEMA], json.dumps([SCHEMA])])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
def test_tools_and_their_calls_are_read(tools: Any, content: Any, arguments: Any) -> None:
    call = {**CALL, "function": {"name": "add", "arguments": arguments}}
    turns = [USER, {"role": "assistant", **content, "tool_calls": [call]}, RESULT, ASSISTANT]
    read = FORMATS["messages"][1]({"messages": turns, "tools": tools})
    assert read == Conversation((USER, CALLING, RESULT, ASSISTANT), (SCHEMA,))
    assert clean(read).conversation == read


def test_keys_that_a_table_fills_with_null_are_none() -> None:
    absent = {"name": None, "tool_calls": None, "tool_call_id": None}
    turns = [{**turn, **absent} for turn in (USER, ASSISTANT)]
    row = {"messages": turns, "tools": None}
    assert FORMATS["messages"][1](row) == Conversation((USER, ASSISTANT))


def test_developer_messages_become_system_messages() -> None:
    turns = [{"role": "developer", "content": "s"}, USER, ASSISTANT]
    assert FORMATS["messages"][1]({"messages": turns}).messages == (SYSTEM, USER, ASSISTANT)


def test_unknown_keys_match_no_format() -> None:
    assert detect({"text": "a", "question": "q"}) is None


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gsm8k", {"question": "q"}, "missing key 'answer'"),
        ("gsm8k", {"question": "q", "answer": 4}, "'answer' is int, expected a string"),
        ("rft", {"query": None, "response": "a"}, "'query' is NoneType, expected a string"),
        ("alpaca", {"instruction": "q", "input": [1], "output": "a"}, "'input' is list"),
        ("prompt_completion", {"prompt": ["q"], "completion": "a"}, "'prompt' is not a list of t"),
        ("messages", {"messages": None}, "'messages' is not a list of turns"),
        ("messages", {"messages": ["q", "a"]}, "'messages' is not a list of turns"),
        ("messages", {"messages": [{"role": "critic"}]}, "unknown role 'critic'"),
        ("messages", {"messages": [{"role": "x\ud800" * 99}]}, r"unknown role '(x\\ud800){20}'$"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "'content' is NoneType"),
        (
            "messages",
            {"messages": [{**USER, "content": [{"type": "image_url"}]}]},
            "a part of type 'image_url', expected t",
        ),
        ("messages", {"messages": [{**USER, "name": 1}]}, "'name' is int, expected a string"),
        ("messages", {"messages": [{**USER, "tool_calls": [CALL]}]}, "in a message of role 'user'"),
        ("messages", {"messages": [{**ASSISTANT, "tool_calls": "{"}]}, "'tool_calls' is not JSON"),
        ("messages", {"messages": [{**CALLING, "tool_calls": [{}]}]}, "a function without a name"),
        (
            "messages",
            {"messages": [{**CALLING, "tool_calls": [{"name": "add", "arguments": "1"}]}]},
            "'arguments' of a tool call are not an object",
        ),
        ("messages", {"messages": [], "tools": {"name": "add"}}, "'tools' is not a list"),
        (
            "messages",
            {"messages": [], "tools": [{"name": "add", "x": 1e999}]},
            "'tools' is not JSON",
        ),
        (
            "messages",
            {"messages": [{**CALLING, "tool_calls": [{"name": "add", "arguments": '{"a": NaN}'}]}]},
            "'arguments' is not JSON",
        ),
        ("messages", {"messages": [], "tools": [{"x": b""}]}, "'tools' is not JSON"),
        ("messages", {"messages": [], "tools": "[" * 200 + "]" * 200}, "nested deeper than 100"),
        ("messages", {"messages": [], "tools": "[" * 99999}, "'tools' is not JSON"),
        ("messages", {"messages": [{"role": "user"}]}, "missing key 'content'"),
        ("sharegpt", {"conversations": "hi"}, "'conversations' is not a list of turns"),
        ("sharegpt", {"conversations": [{"from": "bing", "value": "x"}]}, "unknown speaker 'bing'"),
        ("sharegpt", {"conversations": [{"value": "x"}]}, "missing key 'from'"),
    ],
)
def test_a_malformed_row_gives_the_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        FORMATS[name][1](row)


def turn(role: str, content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("turns", "kept", "repairs"),
    [
        ([USER, ASSISTANT], [USER, ASSISTANT], []),
        (
            [ASSISTANT, USER, ASSISTANT],
            [USER, ASSISTANT],
            ["answers before the first question removed"],
        ),
        (
            [CALLING, RESULT, ASSISTANT, USER, ASSISTANT],
            [USER, ASSISTANT],
            ["answers before the first question removed"],
        ),
        (
            [SYSTEM, ASSISTANT, USER, ASSISTANT, USER],
            [SYSTEM, USER, ASSISTANT],
            ["answers before the first question removed", "unanswered last turn removed"],
        ),
        ([USER, CALLING, RESULT], [USER, CALLING], ["unanswered last turn removed"]),
        ([USER, ASSISTANT, turn("user")], [USER, ASSISTANT], ["unanswered last turn removed"]),
        (
            [turn("system", " "), USER, ASSISTANT],
            [USER, ASSISTANT],
            ["empty system message removed"],
        ),
        (
            [USER, ASSISTANT, USER, turn("assistant", " \n"), USER, ASSISTANT],
            [USER, ASSISTANT],
            ["cut at an empty message"],
        ),
        (
            [USER, USER, ASSISTANT, ASSISTANT],
            [turn("user", "q\n\nq"), turn("assistant", "a\n\na")],
            ["turns of the same role merged"],
        ),
        (
            [SYSTEM, turn("system", "t"), USER, ASSISTANT],
            [turn("system", "s\n\nt"), USER, ASSISTANT],
            ["turns of the same role merged"],
        ),
        (
            [USER, turn("assistant", "a", reasoning_content="r"), ASSISTANT],
            [USER, turn("assistant", "a\n\na", reasoning_content="r")],
            ["turns of the same role merged"],
        ),
        (
            [turn("user", "q", name="x"), turn("user", "q", name="y"), ASSISTANT, CALLING],
            [turn("user", "q\n\nq"), turn("assistant", "a", tool_calls=[CALL])],
            ["turns of the same role merged"],
        ),
        # An empty result of a tool is a result.
        (
            [USER, CALLING, turn("tool"), ASSISTANT],
            [USER, CALLING, turn("tool"), ASSISTANT],
            [],
        ),
    ],
)
def test_repairs_are_made_and_named(turns: list[Any], kept: list[Any], repairs: list[str]) -> None:
    cleaned = clean(Conversation(tuple(turns), (SCHEMA,)))
    assert cleaned.conversation == Conversation(tuple(kept), (SCHEMA,))
    assert cleaned.repairs == tuple(repairs)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no user turn followed by an assistant turn"),
        ([USER], "no user turn followed by an assistant turn"),
        ([ASSISTANT, ASSISTANT], "no user turn followed by an assistant turn"),
        ([SYSTEM, ASSISTANT], "no user turn followed by an assistant turn"),
        ([USER, SYSTEM, ASSISTANT], "a system message in the middle"),
        ([SYSTEM, USER, ASSISTANT, SYSTEM, USER, ASSISTANT], "a system message in the middle"),
        (
            [USER, ASSISTANT, turn("assistant", "b", weight=0)],
            "two answers in a row, of which only",
        ),
        ([ASSISTANT, SYSTEM, USER, ASSISTANT], "a system message in the middle"),
        ([USER, turn("assistant", " \n")], "empty message"),
        ([turn("user"), ASSISTANT, USER, ASSISTANT], "empty message"),
        ([RESULT, USER, ASSISTANT], "a tool message without a call"),
        ([USER, RESULT, ASSISTANT], "a tool message without a call"),
        ([USER, ASSISTANT, RESULT, ASSISTANT], "a tool message without a call"),
        ([USER, CALLING, ASSISTANT], "a tool call without a result"),
        ([USER, turn("assistant", "\ud83d")], "invalid Unicode: half of a surrogate pair"),
        (
            [turn("user", "q", name="\ude00"), ASSISTANT],
            "invalid Unicode: half of a surrogate pair",
        ),
        (
            [USER, turn("assistant", tool_calls=[{"name": "f", "arguments": {"\ud83d": 1}}])],
            "invalid Unicode: half of a surrogate pair",
        ),
    ],
)
def test_an_unusable_conversation_gives_the_reason(turns: list[Any], reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}"):
        clean(Conversation(tuple(turns)))


def test_a_surrogate_in_a_tool_is_refused() -> None:
    with pytest.raises(RowError, match="invalid Unicode: half of a surrogate pair"):
        clean(Conversation((USER, ASSISTANT), ({"name": "\ud83d"},)))


def test_a_digest_covers_what_is_trained_on() -> None:
    # printf '[["user", "q"], ["assistant", "ä"]]' | sha256sum
    plain = Conversation((USER, turn("assistant", "ä")))
    assert sample_digest(plain) == (
        "9172f724138efa73c3296d115f1b779a131183ebecd4ffda6e0a280f48c8dc8b"
    )
    calling = Conversation((USER, CALLING))
    others = [
        Conversation((USER, ASSISTANT)),
        Conversation((USER, ASSISTANT), (SCHEMA,)),
        calling,
        Conversation(calling.messages, (SCHEMA,)),
        Conversation((USER, {**CALLING, "tool_calls": [{**CALL, "id": "c2"}]})),
    ]
    assert len({sample_digest(other) for other in others}) == len(others)
    swapped = tuple(dict(reversed(message.items())) for message in calling.messages)
    assert sample_digest(Conversation(swapped)) == sample_digest(calling)


def test_real_chats_are_repaired_and_counted(shared_data: Callable[[str], Path]) -> None:
    with gzip.open(shared_data("sharegpt/sharegpt92k_sample.jsonl.gz"), "rt") as lines:
        rows = [json.loads(line)["conversations"] for line in lines]
    found: Counter[str] = Counter()
    for turns in rows:
        try:
            found.update(
                clean(FORMATS["sharegpt"][1]({"conversations": turns})).repairs or ["kept"]
            )
        except RowError as fault:
            found[f"dropped: {fault}"] += 1
    # By the file's README 333 of 991 begin with gpt. 9 rows have no human turn: the 8 of one
    # message and one of two; of 4 rows with an empty message, one has it in its first exchange.
    assert len(rows) == 991
    assert found == {
        "kept": 991 - 323 - 9 - 1 - 2,
        "answers before the first question removed": 333 - 9 - 1,
        "cut at an empty message": 3,  # one of them begins with gpt as well
        "dropped: no user turn followed by an assistant turn": 9,
        "dropped: empty message": 1,
    }
