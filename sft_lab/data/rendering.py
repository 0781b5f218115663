"""One renderer for training and evaluation: conversation -> token ids and labels."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

from sft_lab.data.chat_template import ChatTemplate
from sft_lab.data.conversation import Conversation, Message, RowError
from sft_lab.data.prefix_encoder import PrefixEncoder
from sft_lab.data.templates import TEMPLATES
from sft_lab.data.tokenized_row import RowTooLongError, TokenizedRow, TooLong
from sft_lab.data.tokenizer import digest_of, special_tokens
from sft_lab.data.turn_rows import Turn, rows_of_turns
from sft_lab.errors import RequestError

_MANY_TURNS = 100
_BATCH_ROWS = 512  # enough to keep all cores busy; tokenising takes some 100 bytes a token

_PROBE = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "answer"})


Rendered = list[TokenizedRow] | RowError
"""The rows that a conversation makes, or why it makes none."""


class Renderer:
    """Render conversations with the tokenizer's chat template, or with a named one.

    Args:
        tokenizer: A transformers tokenizer.
        template: A key of ``TEMPLATES``, or None for the tokenizer's own.
        template_args: Values of variables that the template reads, such as ``enable_thinking``.

    Raises:
        RequestError: If the template is unknown or does not read an argument, the tokenizer has
            none and none is named, or answers would not end with a token at which generation can
            stop.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._template = ChatTemplate(tokenizer, template, template_args)
        if tokenizer.eos_token_id is None:
            raise RequestError(
                f"corpus.tokenizer: {tokenizer.name_or_path} has no eos token, so answers have "
                "no end; name a tokenizer that has one."
            )
        self.tokenizer = tokenizer
        self.template = template
        self.template_args = dict(template_args or {})
        probe = self.text(_PROBE, add_generation_prompt=False)
        self._encoder = PrefixEncoder(tokenizer, probe)
        self._special = special_tokens(tokenizer)
        self.answer_end_id = self._answer_end(probe)
        """Id of the token that the template puts after an answer."""
        self._stops = {int(tokenizer.eos_token_id), self.answer_end_id}
        self.stop_token_ids = sorted(self._stops)
        """Ids that end an answer: the eos, which may end documents only, and the template's end."""

    def _answer_end(self, probe: str) -> int:
        """Return the first special token that the template puts after an answer."""
        end = probe.rpartition("answer")[2]
        special = {self.tokenizer.eos_token_id, *self.tokenizer.added_tokens_decoder}
        for token_id in self._encoder.encode([end], {})[end]:
            if token_id in special:
                return int(token_id)
        raise RequestError(
            f"corpus.template: {self._template.label} ends an answer with {end!r}, in which "
            f"{self.tokenizer.name_or_path} has no special token, so generation would not know "
            f"where to stop; name another of {', '.join(TEMPLATES)}, or add the token."
        )

    @property
    def pad_token_id(self) -> int:
        """Return the id that fills short rows: the eos if there is none, as it is always masked."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def template_source(self) -> str:
        """Return the template's Jinja2 source, with its arguments and today's date set in it."""
        return self._template.source()

    @cached_property
    def fingerprint(self) -> str:
        """Return a SHA-256 of what decides a row's tokens: the tokenizer and the template."""
        # And the probe, for what a template prints beyond its own text.
        probe = self.text(_PROBE, add_generation_prompt=False)
        return hashlib.sha256((self.tokenizer_digest + probe).encode()).hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        """Return a SHA-256 of the saved tokenizer and the template."""
        given = self.template or self.template_args  # else it is the saved tokenizer's
        return digest_of(self.tokenizer, self.template_source if given else "")

    def text(
        self, conversation: Conversation | Sequence[Message], *, add_generation_prompt: bool
    ) -> str:
        """Return a conversation as the text that is tokenised.

        Raises:
            RequestError: If the template cannot render it, or leaves out a part of it.
        """
        if not isinstance(conversation, Conversation):
            conversation = Conversation(tuple(conversation))
        [text] = self._template.texts([conversation], add_generation_prompt=add_generation_prompt)
        self._template.check_complete(
            conversation, text, add_generation_prompt=add_generation_prompt
        )
        return text

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of an evaluation prompt, ready for the assistant's answer."""
        text = self.text(messages, add_generation_prompt=True)
        return self._encoder.encode([text], {})[text]

    def continued_ids(self, text: str) -> list[int]:
        """Return the token ids of a text for a model to continue, without a chat template."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        ends = ids and ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1
        return ids[:-1] if ends else ids

    def row(
        self,
        conversation: Conversation,
        max_length: int | None = None,
        too_long: TooLong = "drop",
    ) -> TokenizedRow:
        """Tokenise a conversation that makes one training row, as ``rows`` does.

        Raises:
            RowTooLongError: If the row is longer than ``max_length``.
            RowError: If the template cannot render it or leaves a part of it out, tokens merge
                across the border of a prompt and its answer, an answer has no tokens, a text holds
                a special token, the last turn is not the assistant's, or every answer has weight 0.
        """
        [found] = self.rows([conversation], max_length, too_long)
        if isinstance(found, RowError):
            raise found
        [row] = found
        return row

    def rows(
        self,
        conversations: Sequence[Conversation],
        max_length: int | None = None,
        too_long: TooLong = "drop",
    ) -> list[Rendered]:
        """Tokenise training rows; the loss falls on assistant turns and their end tokens only.

        A turn of weight 0 carries no loss.

        Targets come from prefix difference: an evaluation prompt is, token for token, the beginning
        of a training row. Where the template rewrites earlier turns, as those do that keep the
        reasoning of the last answer only, a conversation makes one row per trained answer, each
        rendered as if the conversation ended there.

        Args:
            conversations: Each ends with an assistant turn.
            max_length: Longest row in tokens.
            too_long: Drop a longer row, or cut it after the last assistant turn that fits.

        Returns:
            For each conversation its rows, or the error that ``row`` raises.
        """
        found: list[Rendered] = []
        for start in range(0, len(conversations), _BATCH_ROWS):
            batch = conversations[start : start + _BATCH_ROWS]
            limited = [self._limited(conversation, max_length, too_long) for conversation in batch]
            usable = [part for part in limited if isinstance(part, Conversation)]
            rows = iter(self._row_batch(usable, max_length, too_long))
            for conversation, part in zip(batch, limited, strict=True):
                made = part if isinstance(part, RowError) else next(rows)
                if part is not conversation and not isinstance(made, RowError):
                    made = [replace(row, cut=True) for row in made]
                found.append(made)
        return found

    def _limited(
        self, conversation: Conversation, max_length: int | None, too_long: TooLong
    ) -> Conversation | RowError:
        """Return what fits of a conversation of very many turns, others as they are.

        Every turn is rendered with all turns before it, which for thousands of turns takes minutes
        and gigabytes, although few of them can fit.
        """
        messages = conversation.messages
        answers = [n for n, message in enumerate(messages, 1) if message["role"] == "assistant"]
        if max_length is None or len(answers) <= _MANY_TURNS or answers[-1] < len(messages):
            return conversation
        pieces: dict[str, list[int]] = {}

        def fits(num_turns: int) -> bool:
            part = Conversation(messages[: answers[num_turns - 1]], conversation.tools)
            [text] = self._template.texts([part], add_generation_prompt=False)
            return len(self._encoder.encode([text], pieces)[text]) <= max_length

        try:
            if fits(len(answers)):
                return conversation
            fitting = 0
            if too_long == "cut":
                fitting = bisect_left(range(1, len(answers)), True, key=lambda n: not fits(n))
        except RequestError as fault:
            return _refused(fault)
        while fitting and messages[answers[fitting - 1] - 1].get("weight") == 0:
            fitting -= 1
        if not fitting:
            return RowTooLongError(f"longer than max_length {max_length}")
        return Conversation(messages[: answers[fitting - 1]], conversation.tools)

    def _row_batch(
        self,
        conversations: Sequence[Conversation],
        max_length: int | None,
        too_long: TooLong,
    ) -> list[Rendered]:
        try:
            rendered = self._turns(conversations)
        except RequestError as fault:
            if len(conversations) == 1:
                return [_refused(fault)]
            each = (self._row_batch([one], max_length, too_long) for one in conversations)
            return list(chain.from_iterable(each))
        pieces: dict[str, list[int]] = {}
        ids = self._encoder.encode([turns[-1].answered for turns in rendered if turns], pieces)
        prefixes: list[str] = []
        for turns in rendered:
            fits = max_length is None or not turns or len(ids[turns[-1].answered]) <= max_length
            if fits or too_long == "cut":
                prefixes += chain.from_iterable((turn.prompt, turn.answered) for turn in turns)
        ids |= self._encoder.encode(prefixes, pieces)
        found: list[Rendered] = []
        for conversation, turns in zip(conversations, rendered, strict=True):
            try:
                self._check_texts(conversation)
                found.append(rows_of_turns(turns, ids, self._stops, max_length, too_long))
            except RowError as fault:
                found.append(fault)
        return found

    def _check_texts(self, conversation: Conversation) -> None:
        """Refuse texts that the tokenizer would read as the start or end of a turn."""
        if self._special is None:
            return
        for text in conversation.strings:
            if match := self._special.search(text):
                raise RowError(f"a text with the special token {match[0]}")

    def _turns(self, conversations: Sequence[Conversation]) -> list[list[Turn]]:
        """Render every assistant turn's prompt, and the conversation through that turn."""
        indices = [
            [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            if messages and messages[-1]["role"] == "assistant"
            else []
            for messages in (conversation.messages for conversation in conversations)
        ]

        def texts(num_after: int, *, add_generation_prompt: bool) -> Iterable[str]:
            prefixes = (
                Conversation(conversation.messages[: index + num_after], conversation.tools)
                for conversation, turns in zip(conversations, indices, strict=True)
                for index in turns
            )
            return self._template.texts(prefixes, add_generation_prompt=add_generation_prompt)

        prompts = texts(0, add_generation_prompt=True)
        answered = texts(1, add_generation_prompt=False)
        trained = (
            conversation.messages[index].get("weight") != 0
            for conversation, turns in zip(conversations, indices, strict=True)
            for index in turns
        )
        flat = map(Turn, chain.from_iterable(indices), prompts, answered, trained)
        rendered = [list(islice(flat, len(turns))) for turns in indices]
        for conversation, turns in zip(conversations, rendered, strict=True):
            for turn in turns:
                messages = conversation.messages[: turn.index + 1]
                if turn is turns[-1] or messages[-1].get("reasoning_content"):
                    self._template.check_complete(
                        Conversation(messages, conversation.tools),
                        turn.answered,
                        add_generation_prompt=False,
                    )
        return rendered

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return an answer's text without special tokens, otherwise unchanged."""
        text = self.tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)


def _refused(fault: RequestError) -> RowError:
    """Return the error of a row that a template refuses, with the template's reason."""
    return RowError(str(fault).rstrip("."))
