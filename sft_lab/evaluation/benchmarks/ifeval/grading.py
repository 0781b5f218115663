"""Grade which instructions of an IFEval row a response follows, strictly and loosely."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from sft_lab.evaluation.benchmarks.ifeval.arguments import check_kwargs
from sft_lab.evaluation.benchmarks.ifeval.instructions import INSTRUCTIONS

_FIELDS = {"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list}


@dataclass(frozen=True)
class Followed:
    """Hold whether each instruction of a row is followed, in the row's order.

    Attributes:
        strict: By the response unchanged.
        loose: By the response, or by it without its first or last line or asterisks.
        too_slow: The instructions whose pattern, from the row, took longer than its time limit.
            They count as not followed.
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    too_slow: tuple[str, ...] = ()


def grade(row: Mapping[str, Any], response: str) -> Followed:
    r"""Grade which instructions a response follows.

    Strict grades the response unchanged. Loose also grades it without its first line, its last
    line, or both, and each of these four without asterisks; an instruction is followed if any of
    the eight follows it. A blank text follows nothing.

    Verdicts equal the official checker's, except that
    - languages are detected with a fixed seed (see ``detect_language``);
    - sentences and words are split as NLTK up to 3.9 does (see ``split_sentences``);
    - a mark given as the letter to count is counted, whereas its first version drew another letter
      at random (two rows of the data set ask for one);
    - JSON nested too deep for Python's parser is not followed, whereas the official checker fails;
    - patterns of a row have a time limit, at which the instruction counts as not followed;
    - kwargs that it would draw at random are errors (see ``check_kwargs``).

    Source: Zhou et al., 2023, Instruction-Following Evaluation for Large Language Models, sec. 3,
    and its checker, instruction_following_eval in google-research.

    Args:
        row: A row of the data set, with ``key``, ``prompt``, ``instruction_id_list``, ``kwargs``.
        response: The model's answer.

    Raises:
        ValueError: If the row cannot be graded; see ``check_row``.

    >>> row = {"key": 1, "prompt": "Quote a word; no commas.", "kwargs": [{}, {}],
    ...        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"]}
    >>> grade(row, 'Sure, here it is:\n"Rain"')
    Followed(strict=(False, False), loose=(True, True), too_slow=())
    """
    strict, loose, too_slow = [], [], []
    texts = [text for text in _loose_texts(response) if text.strip()]
    for instruction_id, kwargs in _instructions(row):
        follows = INSTRUCTIONS[instruction_id]
        followed = [False, False]
        try:
            followed[0] = followed[1] = bool(response.strip()) and follows(response, **kwargs)
            followed[1] = followed[0] or any(follows(text, **kwargs) for text in texts)
        except TimeoutError:
            too_slow.append(instruction_id)
        strict.append(followed[0])
        loose.append(followed[1])
    return Followed(tuple(strict), tuple(loose), tuple(too_slow))


def check_row(row: Mapping[str, Any]) -> None:
    """Check that a row can be graded.

    Nulls among the kwargs are ignored: in the copy on Hugging Face every instruction has the keys
    of all instructions, null unless they are its own.

    Raises:
        ValueError: If a field is missing or wrong, an instruction is unknown, or its kwargs are
            not those it takes; the caller adds file and line.
    """
    _instructions(row)


def _instructions(row: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return a row's instructions with the kwargs of each, checked and without nulls."""
    for key, kind in _FIELDS.items():
        if key not in row:
            raise ValueError(f"key '{key}' is missing; IFEval rows need it.")
        if not isinstance(row[key], kind):
            raise ValueError(f"key '{key}' must be {kind.__name__}, got {reprlib.repr(row[key])}.")
    ids, kwargs = row["instruction_id_list"], row["kwargs"]
    if not ids:
        raise ValueError("key 'instruction_id_list' must name at least one instruction, got [].")
    if len(ids) != len(kwargs):
        raise ValueError(
            f"key 'kwargs' must have as many objects as there are instructions, {len(ids)}, "
            f"got {len(kwargs)}. Give {{}} to an instruction that takes none."
        )
    return [
        (instruction_id, _kwargs(place, instruction_id, given))
        for place, (instruction_id, given) in enumerate(zip(ids, kwargs, strict=True))
    ]


def _kwargs(place: int, instruction_id: object, given: object) -> dict[str, Any]:
    if not isinstance(instruction_id, str) or instruction_id not in INSTRUCTIONS:
        near = get_close_matches(str(instruction_id), INSTRUCTIONS, n=1, cutoff=0)
        raise ValueError(
            f"instruction_id_list[{place}] must be one of IFEval's 25 instructions, "
            f"got {reprlib.repr(instruction_id)}. The nearest is '{near[0]}'."
        )
    if not isinstance(given, Mapping):
        raise ValueError(f"kwargs[{place}] must be an object, got {reprlib.repr(given)}.")
    try:
        return check_kwargs(INSTRUCTIONS[instruction_id], given)
    except ValueError as error:
        raise ValueError(f"kwargs[{place}] of '{instruction_id}': {error}") from error


def _loose_texts(response: str) -> list[str]:
    lines = response.split("\n")
    cut = (lines[1:], lines[:-1], lines[1:-1])
    texts = [response, *("\n".join(part).strip() for part in cut)]
    return list(dict.fromkeys([*texts, *(text.replace("*", "") for text in texts)]))
