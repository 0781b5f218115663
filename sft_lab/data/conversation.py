"""Conversations: the one shape that all row formats lead to, and their identity."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""``role``, ``content``; optionally ``name``, ``tool_calls``, ``tool_call_id``."""


class RowError(ValueError):
    """A row that cannot become a conversation; the message is the reason, which is counted."""


@dataclass(frozen=True)
class Conversation:
    """Messages and tools, into which every format turns its rows.

    Attributes:
        messages: In order; the roles are system, user, assistant and tool.
        tools: JSON schemas of the functions that the assistant may call.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


def sample_digest(conversation: Conversation) -> str:
    """Return the SHA-256 of a conversation's content as hex, the same on every machine.

    Roles and contents are hashed; if there are also tools or names, everything is.
    """
    content: Any = [[message["role"], message["content"]] for message in conversation.messages]
    if conversation.tools or any(len(message) > 2 for message in conversation.messages):
        content = [conversation.messages, conversation.tools]
    encoded = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(encoded.encode("utf-8", "surrogatepass")).hexdigest()
