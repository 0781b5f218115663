"""Conversations, which every row format is converted to, and their digests."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""``role``, ``content``; optionally ``name``, ``tool_calls``, ``tool_call_id``."""


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


def sample_digest(conversation: Conversation) -> str:
    """Return the SHA-256 of a conversation's content as hex, the same on every machine.

    Only roles and contents are hashed, unless there are also tools or names.
    """
    content: Any = [[message["role"], message["content"]] for message in conversation.messages]
    if conversation.tools or any(len(message) > 2 for message in conversation.messages):
        content = [conversation.messages, conversation.tools]
    encoded = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(encoded.encode("utf-8", "surrogatepass")).hexdigest()
