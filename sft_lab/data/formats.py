"""Row formats of SFT files: one function each, which turns a row into a conversation."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

Message = dict[str, Any]
"""``role``, ``content``; optionally ``name``, ``tool_calls``, ``tool_call_id``."""

FormatName = Literal["messages", "sharegpt", "alpaca", "gsm8k", "rft", "prompt_completion"]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_MAX_DEPTH = 100  # templates copy tools by recursion, which must not run out


class RowError(ValueError):
    """A row that cannot become a conversation; the message is the reason, counted by the caller."""


@dataclass(frozen=True)
class Conversation:
    """What every format comes to.

    Attributes:
        messages: In order; the roles are system, user, assistant and tool.
        tools: JSON schemas of what the assistant may call.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Cleaned:
    """A conversation that can be trained on.

    Attributes:
        conversation: An optional system message, then turns from a user's to an assistant's.
        repairs: What was done to get there; every name at most once.
    """

    conversation: Conversation
    repairs: tuple[str, ...]


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
    return Conversation(
        ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    )


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
    found = []
    for turn in _turns(row, "conversations"):
        speaker = text(turn, "from")
        if speaker not in _SHAREGPT_ROLES:
            raise RowError(f"unknown speaker {_named(speaker)}")
        found.append({"role": _SHAREGPT_ROLES[speaker], "content": text(turn, "value")})
    return Conversation(tuple(found))


def messages(row: Mapping[str, Any]) -> Conversation:
    """``messages``: a list of ``role``, ``content``; optionally ``tools``, a list of JSON schemas.

    Messages may also have ``name``, ``tool_calls`` and ``tool_call_id``, as in OpenAI's chat API. A
    list may be a string of JSON instead, as Parquet files need it: their columns have one type.
    """
    tools = tuple(_functions(row, "tools"))
    return Conversation(tuple(_message(turn) for turn in _turns(row, "messages")), tools)


def _message(turn: Mapping[str, Any]) -> Message:
    role = text(turn, "role")
    if role not in _ROLES:
        raise RowError(f"unknown role {_named(role)}")
    calls = _functions(turn, "tool_calls")
    if calls and role != "assistant":
        raise RowError(f"'tool_calls' in a message of role '{role}'")
    silent = bool(calls) and turn.get("content") is None
    message: Message = {"role": _ROLES[role], "content": "" if silent else text(turn, "content")}
    for key in ("name", "tool_call_id"):
        if turn.get(key) is not None:
            message[key] = text(turn, key)
    if calls:
        message["tool_calls"] = [_parsed_arguments(call) for call in calls]
    return message


def _turns(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    turns = row.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError(f"'{key}' is not a list of turns")
    return turns


def _named(value: str) -> str:
    """Return a role or speaker as a reason shows it: hostile ones are long, or no text."""
    return repr(value[:40])


def _functions(row: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return tools or tool calls; every one has a name, beside or under ``function``."""
    if row.get(key) in (None, ""):
        return []
    found = _json(row[key], key)
    if not isinstance(found, list):
        raise RowError(f"'{key}' is not a list")
    for entry in found:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"'{key}' holds a function without a name")
    return found


def _parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    # OpenAI's API gives arguments as a string of JSON; chat templates write JSON from an object,
    # and would quote the string once more.
    function = call.get("function", call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, "arguments")
    if not isinstance(arguments, dict):
        raise RowError("'arguments' of a tool call are no object")
    parsed = {**function, "arguments": arguments}
    return {**call, "function": parsed} if "function" in call else parsed


def _json(value: Any, key: str) -> Any:
    try:
        plain = json.loads(value if isinstance(value, str) else json.dumps(value))
        depth = _depth(plain)
    except (TypeError, ValueError, RecursionError) as fault:
        raise RowError(f"'{key}' is not JSON") from fault
    if depth > _MAX_DEPTH:
        raise RowError(f"'{key}' is nested deeper than {_MAX_DEPTH}")
    return plain


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, dict | list) else 0


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


def sample_digest(conversation: Conversation) -> str:
    """Return the SHA-256 of a conversation's content as hex, the same on every machine.

    Roles and contents count; where there is more, such as tools or names, so does all of it.
    """
    content: Any = [[message["role"], message["content"]] for message in conversation.messages]
    if conversation.tools or any(len(message) > 2 for message in conversation.messages):
        content = [conversation.messages, conversation.tools]
    encoded = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(encoded.encode("utf-8", "surrogatepass")).hexdigest()


def clean(conversation: Conversation) -> Cleaned:
    """Return the part of a conversation that can be trained on, or raise with the reason it cannot.

    Real chats are logs: many begin or break off in the middle. What is repaired is named.

    Raises:
        RowError: With the reason: no answered question, an empty message in the first exchange, a
            system or tool message out of place, or text that no tokenizer can read.
    """
    kept = list(conversation.messages)
    repairs = []
    for name, repair in _REPAIRS.items():
        repaired = repair(kept)
        if len(repaired) < len(kept):
            repairs.append(name)
        kept = repaired
    if not kept:
        raise RowError("no user turn followed by an assistant turn")
    _check_order(kept)
    cleaned = Conversation(tuple(kept), conversation.tools)
    try:
        json.dumps([cleaned.messages, cleaned.tools], ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:
        raise RowError("half of a surrogate pair, which is no text") from fault
    return Cleaned(cleaned, tuple(repairs))


def _check_order(kept: list[Message]) -> None:
    if kept[0]["role"] == "tool":
        raise RowError("a tool message that answers no call")
    for before, message in pairwise(kept):
        if message["role"] == "system":
            raise RowError("a system message in the middle")
        if message["role"] == "tool" and not (before["role"] == "tool" or before.get("tool_calls")):
            raise RowError("a tool message that answers no call")


def _without_empty_system(kept: list[Message]) -> list[Message]:
    return [
        message for message in kept if message["role"] != "system" or message["content"].strip()
    ]


def _from_first_question(kept: list[Message]) -> list[Message]:
    """Nobody sees what a leading assistant turn answers."""
    roles = [message["role"] for message in kept]
    start = next((n for n, role in enumerate(roles) if role != "system"), len(roles))
    end = start
    while end < len(roles) and (
        roles[end] == "assistant" or (end > start and roles[end] == "tool")
    ):
        end += 1
    if end > start and "system" in roles[end : end + 1]:
        raise RowError("a system message in the middle")
    return kept[:start] + kept[end:]


def _to_last_answer(kept: list[Message]) -> list[Message]:
    roles = [message["role"] for message in kept]
    return kept[: len(roles) - roles[::-1].index("assistant")] if "assistant" in roles else []


def _before_first_empty(kept: list[Message]) -> list[Message]:
    for index, message in enumerate(kept):
        # A tool may have nothing to say, and its silence is an answer.
        if not (
            message["content"].strip() or message.get("tool_calls") or message["role"] == "tool"
        ):
            exchanges = _to_last_answer(kept[:index])
            if not exchanges:
                raise RowError("empty message")
            return exchanges
    return kept


def _merged(kept: list[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in kept:
        last: Message = merged[-1] if merged else {}
        if message["role"] != last.get("role") or message["role"] not in ("user", "assistant"):
            merged.append(message)
            continue
        if last.get("tool_calls"):
            raise RowError("a tool call that nothing answers")
        contents = [turn["content"] for turn in (last, message) if turn["content"].strip()]
        merged[-1] = {**message, **last, "content": "\n\n".join(contents)}
        if message.get("name") != last.get("name"):
            del merged[-1]["name"]
    return merged


_REPAIRS: dict[str, Callable[[list[Message]], list[Message]]] = {
    "empty system message removed": _without_empty_system,
    "answers before the first question removed": _from_first_question,
    "unanswered last turn removed": _to_last_answer,
    "cut at an empty message": _before_first_empty,
    "turns of the same role merged": _merged,
}
"""In the order they are made; each leaves fewer messages where it was needed."""
