"""Row formats of SFT files: one function each, or a class from outside the package."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from sft_lab.data.conversation import Conversation, Message, RowError
from sft_lab.data.turns import optional_text, read_json, read_tools, read_turns, text, with_system

FormatName = Literal[
    "messages", "sharegpt", "alpaca", "gsm8k", "rft", "prompt_completion", "orca", "dolly"
]


def messages(row: Mapping[str, Any]) -> Conversation:
    """``messages``: a list of ``role``, ``content``; optionally ``tools``, a list of JSON schemas.

    Messages may also have ``name``, ``tool_calls``, ``tool_call_id`` and ``reasoning_content``, as
    in the APIs of OpenAI and others, and ``weight``, where 0 means no loss. Any list may also be a
    JSON string, for Parquet files, whose columns have one type.
    """
    return Conversation(with_system(row, read_turns(row, "messages")), read_tools(row, wrap=False))


def sharegpt(row: Mapping[str, Any]) -> Conversation:
    """``conversations``: a list of ``from``, ``value``; optionally ``system`` and ``tools``.

    A turn of ``function_call`` holds a call as JSON, one of ``observation`` its result.
    """
    return Conversation(
        with_system(row, read_turns(row, "conversations")), read_tools(row, wrap=True)
    )


def alpaca(row: Mapping[str, Any]) -> Conversation:
    """``instruction``, ``output``; optionally ``input``, ``system``, ``history``."""
    return _exchange(row, "instruction", "output", context="input")


def gsm8k(row: Mapping[str, Any]) -> Conversation:
    """``question``, ``answer``."""
    return _exchange(row, "question", "answer")


def rft(row: Mapping[str, Any]) -> Conversation:
    """``query``, ``response``: the rejection-sampled GSM8K paths of arXiv 2308.01825."""
    return _exchange(row, "query", "response")


def orca(row: Mapping[str, Any]) -> Conversation:
    """``question``, ``response``; optionally ``system_prompt``."""
    return _exchange(row, "question", "response")


def dolly(row: Mapping[str, Any]) -> Conversation:
    """``instruction``, ``response``; optionally ``context``."""
    return _exchange(row, "instruction", "response", context="context")


def prompt_completion(row: Mapping[str, Any]) -> Conversation:
    """``prompt``, ``completion``: strings, or lists of ``role``, ``content``.

    Of lists only the completion's answers carry loss, as in TRL.
    """
    if not isinstance(row.get("prompt"), list):
        return _exchange(row, "prompt", "completion")
    given = [
        {**message, "weight": 0} if message["role"] == "assistant" else message
        for message in read_turns(row, "prompt")
    ]
    if isinstance(row.get("completion"), str):
        answers = [_assistant(text(row, "completion"))]
    else:
        answers = read_turns(row, "completion")
    return Conversation(with_system(row, [*given, *answers]), read_tools(row, wrap=True))


def _exchange(
    row: Mapping[str, Any], question: str, answer: str, context: str | None = None
) -> Conversation:
    """Return a question and its answer, after the earlier ones of ``history``."""
    prompt = text(row, question)
    if context is not None and (more := optional_text(row, context)):
        prompt += "\n\n" + more
    turns = [*_history(row), _user(prompt), _assistant(text(row, answer))]
    return Conversation(with_system(row, turns))


def _history(row: Mapping[str, Any]) -> list[Message]:
    """Return the pairs of an earlier question and answer under ``history``."""
    if row.get("history") in (None, ""):
        return []
    pairs = read_json(row["history"], "history")
    if not isinstance(pairs, list):
        raise RowError("'history' is not a list of questions and answers")
    found = []
    for pair in pairs:
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise RowError("'history' is not a list of questions and answers")
        found += [_user(pair[0]), _assistant(pair[1])]
    return found


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


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
    "orca": (frozenset({"question", "response"}), orca),
    "dolly": (frozenset({"instruction", "response"}), dolly),
}
if set(FORMATS) != set(get_args(FormatName)):
    raise TypeError("FormatName and FORMATS name different formats.")


def detect(row: Mapping[str, Any]) -> FormatName | None:
    """Return the format whose keys the row has, or None; keys that hold something win.

    >>> detect({"question": "1+1?", "answer": "2", "messages": None})
    'gsm8k'
    """
    filled = {key for key, value in row.items() if value is not None}
    found = (
        name for held in (filled, set(row)) for name, (keys, _) in FORMATS.items() if keys <= held
    )
    return next(found, None)
