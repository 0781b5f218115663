"""Row formats of SFT files: one function each, or a class from outside the package."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from sft_lab.data.conversation import Conversation, Message, RowError

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
_MAX_DEPTH = 100  # templates copy tools recursively, up to Python's limit


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
            raise RowError(f"unknown speaker {_shortened(speaker)}")
        found.append({"role": _SHAREGPT_ROLES[speaker], "content": text(turn, "value")})
    return Conversation(tuple(found))


def messages(row: Mapping[str, Any]) -> Conversation:
    """``messages``: a list of ``role``, ``content``; optionally ``tools``, a list of JSON schemas.

    Messages may also have ``name``, ``tool_calls`` and ``tool_call_id``, as in OpenAI's chat API. A
    list may also be a JSON string, for Parquet files, whose columns have one type.
    """
    tools = tuple(_functions(row, "tools"))
    return Conversation(tuple(_message(turn) for turn in _turns(row, "messages")), tools)


def _message(turn: Mapping[str, Any]) -> Message:
    role = text(turn, "role")
    if role not in _ROLES:
        raise RowError(f"unknown role {_shortened(role)}")
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


def _shortened(value: str) -> str:
    """Return a role or speaker for a message: a hostile one may be long, or invalid Unicode."""
    return repr(value[:40])


def _functions(row: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return tools or tool calls; each has a name, at its top level or under ``function``."""
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
    # OpenAI's API gives arguments as a JSON string; chat templates serialise an object, and would
    # quote the string a second time.
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


class SourceFormat:
    """A row format from outside the package.

    Set ``corpus.sources.X.format: {class_path: my_formats.MyFormat, init_args: {...}}``. Tokenised
    rows are cached under the class, its arguments and the source code of its module.
    """

    def conversation(self, row: Mapping[str, Any]) -> Conversation:
        """Return a row as a conversation.

        Raises:
            RowError: If the row cannot be used, with the reason; such rows are counted, up to
                ``max_dropped``. A KeyError counts as a missing key. ``text(row, key)`` raises it.
        """
        raise NotImplementedError


def source_code_digest(row_format: SourceFormat) -> str | None:
    """Return the SHA-256 of the module that defines a format; None if it has no source file."""
    module = inspect.getmodule(type(row_format))
    try:
        source = inspect.getsource(module) if module is not None else None
    except OSError:
        return None
    return None if source is None else hashlib.sha256(source.encode()).hexdigest()


FORMATS: dict[FormatName, tuple[frozenset[str], Callable[[Mapping[str, Any]], Conversation]]] = {
    "messages": (frozenset({"messages"}), messages),
    "sharegpt": (frozenset({"conversations"}), sharegpt),
    "alpaca": (frozenset({"instruction", "output"}), alpaca),
    "gsm8k": (frozenset({"question", "answer"}), gsm8k),
    "rft": (frozenset({"query", "response"}), rft),
    "prompt_completion": (frozenset({"prompt", "completion"}), prompt_completion),
}
if set(FORMATS) != set(get_args(FormatName)):
    raise TypeError("FormatName and FORMATS name different formats.")


def detect(row: Mapping[str, Any]) -> FormatName | None:
    """Return the format whose keys the row has, or None.

    >>> detect({"question": "1+1?", "answer": "2"})
    'gsm8k'
    """
    return next((name for name, (keys, _) in FORMATS.items() if keys <= row.keys()), None)
