"""Row formats of SFT files: one function each, which turns a row into a conversation."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

Message = dict[str, str]
Conversation = tuple[Message, ...]

FormatName = Literal["messages", "sharegpt", "alpaca", "gsm8k", "rft", "prompt_completion"]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_ROLES = ("system", "user", "assistant")
_SURROGATE = re.compile("[\ud800-\udfff]")


class RowError(ValueError):
    """A row that cannot become a conversation; the message is the reason, counted by the caller."""


def text(row: Mapping[str, Any], key: str) -> str:
    """Return a string value of a row.

    Raises:
        RowError: If the key is missing or its value is not a string.
    """
    if key not in row:
        raise RowError(f"missing key '{key}'")
    if not isinstance(row[key], str):
        raise RowError(f"'{key}' is {type(row[key]).__name__}, expected a string")
    return str(row[key])


def _single_turn(prompt: str, answer: str) -> Conversation:
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})


def gsm8k(row: Mapping[str, Any]) -> Conversation:
    """``question``, ``answer``."""
    return _single_turn(text(row, "question"), text(row, "answer"))


def rft(row: Mapping[str, Any]) -> Conversation:
    """``query``, ``response``: the rejection-sampled GSM8K paths of arXiv 2308.01825."""
    return _single_turn(text(row, "query"), text(row, "response"))


def alpaca(row: Mapping[str, Any]) -> Conversation:
    """``instruction``, ``input`` (may be empty or absent), ``output``."""
    prompt = text(row, "instruction")
    if row.get("input") and text(row, "input").strip():
        prompt += "\n\n" + text(row, "input")
    return _single_turn(prompt, text(row, "output"))


def prompt_completion(row: Mapping[str, Any]) -> Conversation:
    """``prompt``, ``completion``, both strings."""
    return _single_turn(text(row, "prompt"), text(row, "completion"))


def sharegpt(row: Mapping[str, Any]) -> Conversation:
    """``conversations``: a list of ``from``, ``value``."""
    turns = _turns(row, "conversations")
    messages = []
    for turn in turns:
        speaker = text(turn, "from")
        if speaker not in _SHAREGPT_ROLES:
            raise RowError(f"unknown speaker '{speaker}'")
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": text(turn, "value")})
    return tuple(messages)


def messages(row: Mapping[str, Any]) -> Conversation:
    """``messages``: a list of ``role``, ``content``."""
    turns = _turns(row, "messages")
    result = []
    for turn in turns:
        role = text(turn, "role")
        if role not in _ROLES:
            raise RowError(f"unknown role '{role}'")
        result.append({"role": role, "content": text(turn, "content")})
    return tuple(result)


def _turns(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    turns = row.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError(f"'{key}' is not a list of turns")
    return turns


FORMATS: dict[str, tuple[frozenset[str], Callable[[Mapping[str, Any]], Conversation]]] = {
    "messages": (frozenset({"messages"}), messages),
    "sharegpt": (frozenset({"conversations"}), sharegpt),
    "alpaca": (frozenset({"instruction", "output"}), alpaca),
    "gsm8k": (frozenset({"question", "answer"}), gsm8k),
    "rft": (frozenset({"query", "response"}), rft),
    "prompt_completion": (frozenset({"prompt", "completion"}), prompt_completion),
}
if set(FORMATS) != set(get_args(FormatName)):
    raise TypeError("FormatName and FORMATS name different formats.")


def detect(row: Mapping[str, Any]) -> str | None:
    """Return the format whose keys the row has, or None.

    >>> detect({"question": "1+1?", "answer": "2"})
    'gsm8k'
    """
    return next((name for name, (keys, _) in FORMATS.items() if keys <= row.keys()), None)


def trainable(conversation: Conversation) -> Conversation:
    """Return the part of a conversation that can be trained on, or raise with the reason it cannot.

    A leading assistant turn answers a question that nobody sees, so it goes; what follows the last
    assistant turn has no answer, so it goes too. An empty system message is none. The roles that
    are left must alternate.

    Raises:
        RowError: With the reason: no answered question, an empty message, roles out of turn, or
            text that no tokenizer can read.
    """
    system = [turn for turn in conversation[:1] if turn["role"] == "system"]
    turns = list(conversation[len(system) :])
    while turns and turns[0]["role"] == "assistant":
        turns.pop(0)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise RowError("no user turn followed by an assistant turn")
    for index, turn in enumerate(turns):
        if turn["role"] != ("user", "assistant")[index % 2]:
            raise RowError("user and assistant turns do not alternate")
        if not turn["content"].strip():
            raise RowError("empty message")
    kept = (*(turn for turn in system if turn["content"].strip()), *turns)
    if any(_SURROGATE.search(turn["content"]) for turn in kept):
        raise RowError("half of a surrogate pair, which is no text")
    return kept
