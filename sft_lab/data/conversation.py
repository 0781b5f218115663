"""Conversations, which every row format is converted to, and their digests."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""``role``, ``content``; optionally ``name``, ``tool_calls``, ``tool_call_id``, and of an answer
``reasoning_content`` and ``weight``, which is 0 where it carries no loss."""


class RowError(ValueError):
    """A row that cannot be used; the message is the reason, by which rows are counted."""


@dataclass(frozen=True)
class Conversation:
    """The messages and tools of one row.

    Attributes:
        messages: In order; the roles are system, user, assistant and tool.
        tools: JSON schemas of the functions that the assistant may call.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def texts(self) -> list[str]:
        """Return what the messages say: contents, reasoning, and the arguments of calls."""
        found = []
        for message in self.messages:
            found.append(message["content"])
            if "reasoning_content" in message:
                found.append(message["reasoning_content"])
            for call in message.get("tool_calls", ()):
                found += strings(call.get("function", call)["arguments"], keys=False)
        return found

    @property
    def strings(self) -> Iterator[str]:
        """Yield every string that a template may put into a row, names and keys included."""
        for message in self.messages:
            yield from strings(message) if len(message) > 2 else (message["content"],)
        yield from strings(self.tools)


def sample_digest(conversation: Conversation) -> str:
    """Return the SHA-256 of a conversation's content as hex, the same on every machine.

    Only roles and contents are hashed, unless there are also tools or names.
    """
    content: Any = [[message["role"], message["content"]] for message in conversation.messages]
    if conversation.tools or any(len(message) > 2 for message in conversation.messages):
        content = [conversation.messages, conversation.tools]
    encoded = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(encoded.encode("utf-8", "surrogatepass")).hexdigest()


def strings(value: Any, *, keys: bool = True) -> Iterator[str]:
    """Yield every string in a plain value, by default keys of objects as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if keys:
                yield key
            yield from strings(inner, keys=keys)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner, keys=keys)
