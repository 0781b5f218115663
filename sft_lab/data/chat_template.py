"""Apply a chat template, and refuse one that silently leaves out a part of a conversation."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import groupby
from operator import attrgetter
from typing import Any

from sft_lab.data.conversation import Conversation, Message
from sft_lab.data.templates import TEMPLATES
from sft_lab.errors import RequestError

TODAY = date(2024, 7, 26)
"""The date that templates print as today's, so that runs of different days compare: the one that
Llama 3.1's template prints where it knows none."""
_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class ChatTemplate:
    """A tokenizer's own chat template, or a named one.

    Args:
        tokenizer: A transformers tokenizer.
        name: A key of ``TEMPLATES``, or None for the tokenizer's own.

    Attributes:
        source: The Jinja2 source of a named template; None for the tokenizer's own.
        label: The template's name in messages.

    Raises:
        RequestError: If the name is unknown, or the tokenizer has no template and none is named.
    """

    def __init__(self, tokenizer: Any, name: str | None) -> None:
        if name is not None and name not in TEMPLATES:
            raise RequestError(
                f"corpus.template: unknown template {name!r}; known are {', '.join(TEMPLATES)}."
            )
        if name is None and not tokenizer.chat_template:
            raise RequestError(
                f"corpus.template: the tokenizer of {tokenizer.name_or_path} has no chat template; "
                f"name one of {', '.join(TEMPLATES)}."
            )
        self._tokenizer = tokenizer
        self.source = TEMPLATES[name] if name else None
        self.label = name or "the tokenizer's template"

    def texts(
        self, conversations: Iterable[Conversation], *, add_generation_prompt: bool
    ) -> list[str]:
        """Return conversations as text, in order.

        Raises:
            RequestError: If the template cannot render one of them.
        """
        texts: list[str] = []
        for tools, group in groupby(conversations, key=attrgetter("tools")):
            chats = [conversation.messages for conversation in group]
            texts += self._apply(chats, tools, add_generation_prompt)
        return texts

    def check_complete(
        self, conversation: Conversation, text: str, *, add_generation_prompt: bool
    ) -> None:
        """Refuse a template that silently leaves out tools, tool calls or reasoning, as most do.

        Args:
            conversation: Any conversation; one without these passes.
            text: The text that the template makes of it.
            add_generation_prompt: As it was for the text.

        Raises:
            RequestError: If the text is the same without them.
        """
        without: dict[str, Conversation] = {}
        if conversation.tools:
            without["tools"] = Conversation(conversation.messages)
        for part, key in (("tool calls", "tool_calls"), ("reasoning", "reasoning_content")):
            if any(message.get(key) for message in conversation.messages):
                silent = [{**message, key: None} for message in conversation.messages]
                without[part] = Conversation(tuple(silent), conversation.tools)
        for part, other in without.items():
            try:
                [bare] = self.texts([other], add_generation_prompt=add_generation_prompt)
            except RequestError:  # the template requires them, so it uses them
                continue
            if bare == text:
                raise RequestError(
                    f"corpus.template: {self.label} leaves the {part} of a conversation out; set "
                    "corpus.template to null with a corpus.tokenizer whose own template renders "
                    "them, or remove the rows that have them from the source."
                )

    def _pinned(self, tools: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the template's source without today's date; None for one that has none."""
        if self.source is not None:
            return self.source
        own: str = self._tokenizer.get_chat_template(None, list(tools) or None)
        pinned = _pin_date(own)
        return None if pinned == own else pinned

    def _apply(
        self,
        chats: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
    ) -> list[str]:
        try:
            rendered: list[str] = self._tokenizer.apply_chat_template(
                [list(map(_said, messages)) for messages in chats],
                tools=list(tools) or None,
                chat_template=self._pinned(tools),
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except Exception as fault:  # a template is a program and can raise anything
            if len(chats) > 1:
                for messages in chats:  # find the one that fails: its error names the roles
                    self._apply([messages], tools, add_generation_prompt)
            roles = ", ".join(message["role"] for message in chats[0])
            raise RequestError(
                f"corpus.template: {self.label} cannot render the roles {roles}: {fault}."
            ) from fault
        return rendered


def _pin_date(source: str) -> str:
    """Replace today's date in a template's source by ``TODAY``.

    >>> _pin_date("Today Date: {{ strftime_now('%d %b %Y') }}")
    'Today Date: {{ "26 Jul 2024" }}'
    """
    return _DATE.sub(lambda found: json.dumps(TODAY.strftime(found[2])), source)


def _said(message: Message) -> Message:
    """Return a message without its weight, which is not part of the text."""
    if "weight" not in message:
        return message
    return {key: value for key, value in message.items() if key != "weight"}
