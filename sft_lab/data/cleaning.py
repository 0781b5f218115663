"""Reduce a conversation to what can be trained on, and name every repair."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from sft_lab.data.conversation import Conversation, Message, RowError


@dataclass(frozen=True)
class Cleaned:
    """A conversation that can be trained on.

    Attributes:
        conversation: An optional system message, then turns from a user's to an assistant's.
        repairs: Names of the repairs, each once.
    """

    conversation: Conversation
    repairs: tuple[str, ...]


def clean(conversation: Conversation) -> Cleaned:
    """Return the part of a conversation that can be trained on.

    Real chats are logs: many begin or break off in the middle.

    Raises:
        RowError: If no question is answered, a message of the first exchange is empty, a system or
            tool message is out of place, or a text is not valid Unicode.
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
        raise RowError("invalid Unicode: half of a surrogate pair") from fault
    return Cleaned(cleaned, tuple(repairs))


def _check_order(kept: list[Message]) -> None:
    if kept[0]["role"] == "tool":
        raise RowError("a tool message without a call")
    for before, message in pairwise(kept):
        if message["role"] == "system":
            raise RowError("a system message in the middle")
        if message["role"] == "tool" and not (before["role"] == "tool" or before.get("tool_calls")):
            raise RowError("a tool message without a call")


def _without_empty_system(kept: list[Message]) -> list[Message]:
    return [
        message for message in kept if message["role"] != "system" or message["content"].strip()
    ]


def _from_first_question(kept: list[Message]) -> list[Message]:
    """Remove leading assistant turns: what they answer is unknown."""
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
        # A tool may return nothing, which is a result too.
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
        if message["role"] != last.get("role") or message["role"] == "tool":
            merged.append(message)
            continue
        if last.get("tool_calls"):
            raise RowError("a tool call without a result")
        if message.get("weight") != last.get("weight"):
            raise RowError("two answers in a row, of which only one carries loss")
        merged[-1] = {**message, **last}
        for key in ("content", "reasoning_content"):
            said = [turn[key] for turn in (last, message) if turn.get(key, "").strip()]
            if said or key == "content":
                merged[-1][key] = "\n\n".join(said)
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
"""Repairs by name, in order; one that was needed leaves fewer messages."""
