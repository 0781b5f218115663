from typing import Any

import pytest

from sft_lab.data.formats import FORMATS, RowError, detect, trainable

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


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
    assert FORMATS[name][1](row) == expected


def test_unknown_keys_are_no_format() -> None:
    assert detect({"text": "a", "question": "q"}) is None


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gsm8k", {"question": "q"}, "missing key 'answer'"),
        ("gsm8k", {"question": "q", "answer": 4}, "'answer' is int, expected a string"),
        ("rft", {"query": None, "response": "a"}, "'query' is NoneType, expected a string"),
        ("alpaca", {"instruction": "q", "input": [1], "output": "a"}, "'input' is list"),
        ("prompt_completion", {"prompt": ["q"], "completion": "a"}, "'prompt' is list"),
        ("messages", {"messages": None}, "'messages' is not a list of turns"),
        ("messages", {"messages": ["q", "a"]}, "'messages' is not a list of turns"),
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "unknown role 'tool'"),
        ("messages", {"messages": [{"role": "user"}]}, "missing key 'content'"),
        ("sharegpt", {"conversations": "hi"}, "'conversations' is not a list of turns"),
        ("sharegpt", {"conversations": [{"from": "bing", "value": "x"}]}, "unknown speaker 'bing'"),
        ("sharegpt", {"conversations": [{"value": "x"}]}, "missing key 'from'"),
    ],
)
def test_a_row_that_does_not_fit_says_why(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        FORMATS[name][1](row)


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        ([USER, ASSISTANT], [USER, ASSISTANT]),
        ([ASSISTANT, USER, ASSISTANT], [USER, ASSISTANT]),
        ([SYSTEM, ASSISTANT, USER, ASSISTANT, USER], [SYSTEM, USER, ASSISTANT]),
        ([{"role": "system", "content": " "}, USER, ASSISTANT], [USER, ASSISTANT]),
    ],
)
def test_what_cannot_be_learnt_is_cut_off_at_both_ends(turns: list[Any], kept: list[Any]) -> None:
    assert trainable(tuple(turns)) == tuple(kept)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no user turn followed by an assistant turn"),
        ([USER], "no user turn followed by an assistant turn"),
        ([ASSISTANT, ASSISTANT], "no user turn followed by an assistant turn"),
        ([USER, USER, ASSISTANT], "do not alternate"),
        ([USER, ASSISTANT, ASSISTANT], "do not alternate"),
        ([USER, SYSTEM, ASSISTANT], "do not alternate"),
        ([USER, {"role": "assistant", "content": " \n"}], "empty message"),
        ([{"role": "user", "content": ""}, ASSISTANT], "empty message"),
        ([USER, {"role": "assistant", "content": "\ud83d"}], "half of a surrogate pair"),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_says_why(turns: list[Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        trainable(tuple(turns))
