"""One renderer for training and evaluation: conversation -> token ids and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from sft_lab.data.formats import Conversation, Message, RowError
from sft_lab.errors import RequestError

IGNORED = -100

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATES = {
    "vicuna_v1.1": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% else %}" + _VICUNA_SYSTEM + "{% endif %}{{ ' ' }}"
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "alpaca": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% else %}Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.{% endif %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '\n\n### Instruction:\n' + m['content'] + '\n\n### Response:\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
"""Named chat templates.

Source: vicuna_v1.1: Zheng et al. 2023, FastChat's ``conversation.py`` (two separators, a space and
the eos token); alpaca: Taori et al. 2023, Stanford Alpaca's prompt without input.
"""


class RowTooLongError(RowError):
    """A row that is sound but longer than the limit."""


@dataclass(frozen=True)
class TokenizedRow:
    """One conversation as token ids, and as labels: ``IGNORED`` wherever there is no loss."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_target_tokens(self) -> int:
        """Tokens that carry loss. The first token has no predecessor, so it can never be one."""
        return sum(label != IGNORED for label in self.labels[1:])


class Renderer:
    """Renders conversations by the tokenizer's chat template, or by a named one.

    Args:
        tokenizer: A transformers tokenizer.
        template: A key of ``TEMPLATES``, or None for the tokenizer's own.

    Raises:
        RequestError: If there is no such template, the tokenizer has none and none is named, or
            answers would not end with a token at which generation can stop.
    """

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        if template is not None and template not in TEMPLATES:
            raise RequestError(
                f"corpus.template: unknown template {template!r}; known are {', '.join(TEMPLATES)}."
            )
        if template is None and not tokenizer.chat_template:
            raise RequestError(
                f"corpus.template: the tokenizer of {tokenizer.name_or_path} has no chat template; "
                f"name one of {', '.join(TEMPLATES)}."
            )
        if tokenizer.eos_token_id is None:
            raise RequestError(
                f"corpus.tokenizer: {tokenizer.name_or_path} has no eos token, so answers have "
                "no end; name a tokenizer that has one."
            )
        self.tokenizer = tokenizer
        self.template = template
        self._chat_template = TEMPLATES[template] if template else tokenizer.get_chat_template()
        self.stop_token_ids = sorted({int(tokenizer.eos_token_id), self._answer_end()})
        """The ids that end an answer; a base's eos often ends documents, its template turns."""

    @property
    def _name(self) -> str:
        return self.template or "the tokenizer's template"

    def _answer_end(self) -> int:
        """Return the first special token that the template puts behind an answer."""
        probe = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "answer"})
        end = self.text(probe, add_generation_prompt=False).rpartition("answer")[2]
        special = {self.tokenizer.eos_token_id, *self.tokenizer.added_tokens_decoder}
        for token_id in self._encode(end):
            if token_id in special:
                return int(token_id)
        raise RequestError(
            f"corpus.template: {self._name} ends an answer with {end!r}, in which "
            f"{self.tokenizer.name_or_path} has no special token, so generation would not know "
            f"where to stop; name another of {', '.join(TEMPLATES)}, or add the token."
        )

    @property
    def pad_token_id(self) -> int:
        """The id that fills short rows; masked everywhere, so without one the eos serves."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Return the conversation as the text that is tokenised."""
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except TemplateError as fault:
            roles = ", ".join(message["role"] for message in messages)
            raise RequestError(
                f"corpus.template: {self._name} cannot render the roles {roles}: {fault}."
            ) from fault
        return str(rendered)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of an evaluation prompt, ready for the assistant's answer."""
        return self._encode(self.text(messages, add_generation_prompt=True))

    def row(self, conversation: Conversation, max_length: int | None = None) -> TokenizedRow:
        """Tokenise a training row; the loss falls on assistant turns and their end tokens only.

        Labels come from prefix difference: what a model is asked in evaluation is, token for token,
        the beginning of what it was trained on.

        Args:
            conversation: Ends with an assistant turn.
            max_length: Longest row in tokens.

        Raises:
            RequestError: If the template rewrites earlier turns, so that no prompt is a prefix.
            RowTooLongError: If the row is longer than that.
            RowError: If tokens merge across the border of a prompt and its answer, or an answer
                comes to none.
        """
        whole = self.text(conversation, add_generation_prompt=False)
        input_ids = self._encode(whole)
        if max_length is not None and len(input_ids) > max_length:
            raise RowTooLongError(f"longer than max_length {max_length}")
        labels = [IGNORED] * len(input_ids)
        for index, message in enumerate(conversation):
            if message["role"] != "assistant":
                continue
            prompt = self.text(conversation[:index], add_generation_prompt=True)
            answered = self.text(conversation[: index + 1], add_generation_prompt=False)
            if not (whole.startswith(answered) and answered.startswith(prompt)):
                raise RequestError(
                    f"corpus.template: {self._name} does not render turn {index + 1} as an "
                    "extension of the turns before it, so training and evaluation would see "
                    f"different prompts; name one that does, such as {', '.join(TEMPLATES)}."
                )
            start = self._prefix_length(prompt, input_ids)
            end = len(input_ids)
            if answered != whole:
                end = self._prefix_length(answered, input_ids)
            if start == end:
                raise RowError("an answer of no token")
            labels[start:end] = input_ids[start:end]
        return TokenizedRow(input_ids, labels)

    def _prefix_length(self, text: str, input_ids: list[int]) -> int:
        ids = self._encode(text)
        if input_ids[: len(ids)] != ids:
            raise RowError(
                "tokens merge across the border of two turns (another corpus.template may help)"
            )
        return len(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return an answer's text, without special tokens and otherwise to the letter."""
        text = self.tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
