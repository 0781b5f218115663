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
        "{% else %}" + _VICUNA_SYSTEM + "{% endif %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ ' USER: ' + m['content'] + ' ASSISTANT:' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "alpaca": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% else %}Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.{% endif %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '\n\n### Instruction:\n' + m['content'] + '\n\n### Response:\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
"""Named chat templates. Source of vicuna_v1.1: Zheng et al. 2023, FastChat; of alpaca: Taori et al. 2023."""


@dataclass(frozen=True)
class TokenizedRow:
    """One conversation as token ids, and the ids to learn with ``IGNORED`` wherever there is no loss."""

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
        RequestError: If there is no such template, or the tokenizer has none and none is named.
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
                f"corpus.tokenizer: {tokenizer.name_or_path} has no eos token, so answers cannot end."
            )
        self.tokenizer = tokenizer
        self.template = template
        self._chat_template = TEMPLATES[template] if template else tokenizer.chat_template

    @property
    def pad_token_id(self) -> int:
        """The id that fills short rows; masked everywhere, so where there is none the eos serves."""
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
                f"corpus.template: {self.template or 'the tokenizer template'} cannot render the roles {roles}: {fault}."
            ) from fault
        return str(rendered)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of an evaluation prompt, ready for the assistant's answer."""
        return self._encode(self.text(messages, add_generation_prompt=True))

    def row(self, conversation: Conversation) -> TokenizedRow:
        """Tokenise a training row; the loss falls on assistant turns and their end tokens only.

        Labels come from prefix difference: what a model is asked in evaluation is, token for token,
        the beginning of what it was trained on.

        Raises:
            RequestError: If the template rewrites earlier turns, so that no prompt is a prefix.
            RowError: If this row's tokens merge across the border between a prompt and its answer.
        """
        whole = self.text(conversation, add_generation_prompt=False)
        input_ids = self._encode(whole)
        labels = [IGNORED] * len(input_ids)
        for index, message in enumerate(conversation):
            if message["role"] != "assistant":
                continue
            prompt = self.text(conversation[:index], add_generation_prompt=True)
            answered = self.text(conversation[: index + 1], add_generation_prompt=False)
            if not (whole.startswith(answered) and answered.startswith(prompt)):
                raise RequestError(
                    f"corpus.template: {self.template or 'the tokenizer template'} does not render turn "
                    f"{index + 1} as an extension of the turns before it, so training and evaluation would "
                    "see different prompts; name a template that does."
                )
            start, end = (
                self._prefix_length(prompt, input_ids),
                self._prefix_length(answered, input_ids),
            )
            labels[start:end] = input_ids[start:end]
        return TokenizedRow(input_ids, labels)

    def _prefix_length(self, text: str, input_ids: list[int]) -> int:
        ids = self._encode(text)
        if input_ids[: len(ids)] != ids:
            raise RowError("tokens merge across the border of a prompt and its answer")
        return len(ids)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
