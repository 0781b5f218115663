"""Reasoning that a model writes before its answer: kept, but not graded."""

from collections.abc import Sequence
from dataclasses import dataclass

from sft_lab.data.rendering import Renderer
from sft_lab.errors import RequestError

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Completion:
    """Text that a model wrote: its reasoning, then its answer.

    Attributes:
        answer: The text to grade; empty if the reasoning never ended.
        reasoning: Everything before it, tags and blank lines included; empty if there is none.
    """

    answer: str
    reasoning: str = ""


def split_reasoning(text: str, *, is_open: bool = False) -> Completion:
    r"""Return a completion in two parts, cut after its last ``</think>``.

    A block without an end is a draft, not an answer. As in chat templates, blank lines after the
    block are not part of the answer; indentation is.

    Args:
        text: The completion.
        is_open: Whether the prompt ends inside a block, as the templates of some models make it.

    >>> split_reasoning("<think>7? No.</think>\n\nIt is 8.")
    Completion(answer='It is 8.', reasoning='<think>7? No.</think>\n\n')
    >>> split_reasoning("<think>Is it 7?").answer
    ''
    >>> split_reasoning("It is 8.")
    Completion(answer='It is 8.', reasoning='')
    """
    _, end, answer = text.rpartition(CLOSE)
    if answer.lstrip().startswith(OPEN) or (is_open and not end):
        return Completion("", text)
    if not end:
        return Completion(text)
    answer = answer.lstrip("\r\n")
    return Completion(answer, text[: len(text) - len(answer)])


def template_reasons(renderer: Renderer) -> bool:
    """Return whether a chat template has a block for reasoning."""
    return CLOSE in renderer.template_source


def check_reasoning(renderer: Renderer) -> None:
    """Check that the end of reasoning can be seen in decoded answers.

    Raises:
        RequestError: If it is a special token, which decoding leaves out.
    """
    if CLOSE in renderer.tokenizer.all_special_tokens:
        raise RequestError(
            f"evaluation.cut_reasoning: {CLOSE} is a special token of "
            f"{renderer.tokenizer.name_or_path}, so it is not part of decoded answers and nothing "
            "can be cut; set cut_reasoning to false, or make it an ordinary added token."
        )


def ends_in_reasoning(renderer: Renderer, prompt: Sequence[int]) -> bool:
    """Return whether a prompt, as token ids, ends with the beginning of a block."""
    end = renderer.tokenizer.decode(prompt[-8:], skip_special_tokens=False)
    return bool(str(end).rstrip().endswith(OPEN))
