"""Read the turns and functions of a row, however its producer wrote them, as messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft_lab.data.conversation import Message, RowError
from sft_lab.data.fields import Fields

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
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


def optional_text(row: Mapping[str, Any], *keys: str) -> str:
    """Return the first value that is neither missing, null nor blank, or the empty string."""
    return next((text(row, key) for key in keys if row.get(key) and text(row, key).strip()), "")


def read_turns(row: Mapping[str, Any], key: str) -> list[Message]:
    """Return the turns under a key as messages.

    They are a list, a list as a JSON string, or an object of lists, as ``datasets`` returns a
    sequence of objects. Each has ``role`` and ``content``, or ``from`` and ``value``.

    Raises:
        RowError: If they are none of these, or one of them cannot be read.
    """
    turns = row.get(key)
    if isinstance(turns, str):
        try:
            turns = read_json(turns, key)
        except RowError:
            turns = None
    if isinstance(turns, Mapping) and all(isinstance(value, list) for value in turns.values()):
        columns = turns.values()
        if len({len(column) for column in columns}) == 1:
            turns = [dict(zip(turns, values, strict=True)) for values in zip(*columns, strict=True)]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError(f"'{key}' is not a list of turns")
    tracked = row.turns(key, turns) if isinstance(row, Fields) else turns
    usual = ("from", "value") if key == "conversations" else ("role", "content")
    return [_message(turn, usual) for turn in tracked]


def _message(turn: Mapping[str, Any], usual: tuple[str, str]) -> Message:
    speaker, content = usual
    if speaker not in turn:
        others = (("role", "content"), ("from", "value"))
        speaker, content = next((keys for keys in others if keys[0] in turn), usual)
    name = text(turn, speaker)
    if name not in _ROLES:
        kind = "speaker" if speaker == "from" else "role"
        raise RowError(f"unknown {kind} {shortened(name)}")
    role = _ROLES[name]
    if name == "function_call":
        calls = [_wrapped(call) for call in _one_or_more(text(turn, content), "function_call")]
        said = ""
    else:
        calls = _calls(turn, role)
        silent = bool(calls) and turn.get(content) is None
        said = "" if silent else _content(turn, content)
    message: Message = {"role": role, "content": said}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if turn.get(key) is not None:
            message[key] = text(turn, key)
    if role != "assistant" or not message.get("reasoning_content", "").strip():
        message.pop("reasoning_content", None)
    if not _is_trained(turn) and role == "assistant":
        message["weight"] = 0
    if calls:
        message["tool_calls"] = [_parsed_arguments(call) for call in calls]
    return message


def _content(turn: Mapping[str, Any], key: str) -> str:
    """Return a content, which may be a list of text parts, as vLLM joins them."""
    parts = turn.get(key)
    if not isinstance(parts, list) or not parts:
        return text(turn, key)
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            named = f"of type {shortened(kind)}" if isinstance(kind, str) else "without a type"
            raise RowError(f"'{key}' holds a part {named}, expected text")
    return "\n".join(part["text"] for part in parts)


def _is_trained(turn: Mapping[str, Any]) -> bool:
    weight = turn.get("weight")
    if weight is not None and not (isinstance(weight, int | float) and weight in (0, 1)):
        raise RowError(f"'weight' is {shortened(weight)}, expected 0 or 1")
    return weight is None or bool(weight)


def _calls(turn: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
    key = "tool_calls"
    calls = functions(turn, key)
    if not calls and turn.get("function_call"):  # OpenAI's API before it had tools
        key = "function_call"
        calls = [_wrapped(call) for call in _one_or_more(turn[key], key)]
    if calls and role != "assistant":
        raise RowError(f"'{key}' in a message of role '{role}'")
    return calls


def read_tools(row: Mapping[str, Any], *, wrap: bool) -> tuple[dict[str, Any], ...]:
    """Return the functions that a row offers, under ``tools`` or the older ``functions``.

    Args:
        row: The row.
        wrap: Whether a schema without ``{"type": "function", "function": ...}`` is put into one,
            which templates expect; one under ``functions`` always is.

    Raises:
        RowError: If they are not a list of named functions.
    """
    if tools := functions(row, "tools"):
        return tuple(_wrapped(tool) for tool in tools) if wrap else tuple(tools)
    return tuple(_wrapped(function) for function in functions(row, "functions"))


def functions(row: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return tools or tool calls; each has a name, at its top level or under ``function``.

    Raises:
        RowError: If they are not a list of named functions.
    """
    if row.get(key) in (None, ""):
        return []
    found = read_json(row[key], key)
    if not isinstance(found, list):
        raise RowError(f"'{key}' is not a list")
    return _named(found, key)


def _one_or_more(value: Any, key: str) -> list[dict[str, Any]]:
    found = read_json(value, key)
    return _named(found if isinstance(found, list) else [found], key)


def _named(found: list[Any], key: str) -> list[dict[str, Any]]:
    for entry in found:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"'{key}' holds a function without a name")
    return found


def _wrapped(function: dict[str, Any]) -> dict[str, Any]:
    return function if "function" in function else {"type": "function", "function": function}


def _parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    # OpenAI's API gives arguments as a JSON string; chat templates serialise an object, and would
    # quote the string a second time. Of a function without parameters the string may be empty.
    function = call.get("function", call)
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    if isinstance(arguments, str):
        arguments = read_json(arguments, "arguments")
    if not isinstance(arguments, dict):
        raise RowError("'arguments' of a tool call are not an object")
    parsed = {**function, "arguments": arguments}
    return {**call, "function": parsed} if "function" in call else parsed


def read_json(value: Any, key: str) -> Any:
    """Return a value as plain JSON, parsed first if it is a string.

    Raises:
        RowError: If it is not JSON, or nested too deeply for templates.
    """
    try:
        written = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        plain = json.loads(written, parse_constant=_refuse_constant)
        depth = _depth(plain)
    except (TypeError, ValueError, RecursionError) as fault:
        raise RowError(f"'{key}' is not JSON") from fault
    if depth > _MAX_DEPTH:
        raise RowError(f"'{key}' is nested deeper than {_MAX_DEPTH}")
    return plain


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and infinities, which Python reads and writes although JSON has none."""
    raise ValueError(f"{name} is not JSON")


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, dict | list) else 0


def with_system(row: Mapping[str, Any], found: Sequence[Message]) -> tuple[Message, ...]:
    """Return messages after the system message of their row, if any."""
    content = optional_text(row, "system", "system_prompt")
    system: Message = {"role": "system", "content": content}
    return (*([system] if content and system not in found[:1] else []), *found)


def shortened(value: Any) -> str:
    """Return a value for a message: a hostile one may be long, or invalid Unicode."""
    return repr(value[:40]) if isinstance(value, str) else repr(value)[:40]
