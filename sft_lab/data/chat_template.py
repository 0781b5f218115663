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
_OURS = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")
"""Variables of a template that its arguments may not set."""


class ChatTemplate:
    """A tokenizer's own chat template, or a named one.

    Args:
        tokenizer: A transformers tokenizer.
        name: A key of ``TEMPLATES``, or None for the tokenizer's own.
        arguments: Values of variables that the template reads, such as ``enable_thinking``.

    Attributes:
        label: The template's name in messages.

    Raises:
        RequestError: If the name is unknown, the tokenizer has no template and none is named, or
            the template does not read an argument.
    """

    def __init__(
        self, tokenizer: Any, name: str | None, arguments: Mapping[str, Any] | None = None
    ) -> None:
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
        self._name = name
        self._arguments = dict(arguments or {})
        self.label = name or "the tokenizer's template"
        self._check_arguments()

    def _check_arguments(self) -> None:
        for argument, value in self._arguments.items():
            is_read = re.search(rf"\b{re.escape(argument)}\b", self._written(()))
            if argument in _OURS or not argument.isidentifier() or not is_read:
                raise RequestError(
                    f"corpus.template_args.{argument}: {self.label} takes no such argument; see "
                    "its text for those that it takes, or leave it out."
                )
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as fault:
                raise RequestError(
                    f"corpus.template_args.{argument} must be plain JSON, got {value!r}."
                ) from fault

    def source(self, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the template's Jinja2 source, with its arguments and the date set in it.

        Args:
            tools: The functions on offer, for which some tokenizers have a template of its own.
        """
        values = self._arguments.items()
        # Of the line break after a block, Jinja prints nothing.
        given = "".join(f"{{% set {name} = {_literal(value)} %}}\n" for name, value in values)
        return given + _pin_date(self._written(tools))

    def _written(self, tools: Sequence[Mapping[str, Any]]) -> str:
        if self._name is not None:
            return TEMPLATES[self._name]
        own: str = self._tokenizer.get_chat_template(None, list(tools) or None)
        return own

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
        last = conversation.messages[-1:]  # reasoning of earlier turns may be left out
        for part, key, where in (
            ("tool calls", "tool_calls", conversation.messages),
            ("reasoning", "reasoning_content", last),
        ):
            if any(message.get(key) for message in where):
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
                chat_template=self.source(tools),
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


def _literal(value: Any) -> str:
    """Return a plain value as Jinja writes it.

    >>> _literal({"effort": ["low", None], "thinks": True})
    '{"effort": ["low", none], "thinks": true}'
    """
    if isinstance(value, Mapping):
        inner = (f"{json.dumps(key)}: {_literal(each)}" for key, each in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value)


def _said(message: Message) -> Message:
    """Return a message without its weight, which is not part of the text."""
    if "weight" not in message:
        return message
    return {key: value for key, value in message.items() if key != "weight"}
