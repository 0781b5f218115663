"""Read FastChat's files: questions, reference answers, judge prompts and judgements.

The first three are packaged, in ``data/``.
"""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar

from sft_lab.data.row_files import file_rows
from sft_lab.errors import RequestError

T = TypeVar("T")

_PACKAGED = Path(__file__).with_name("data")
QUESTIONS = _PACKAGED / "question.jsonl"
REFERENCES = _PACKAGED / "gpt-4.jsonl"
JUDGE_PROMPTS = _PACKAGED / "judge_prompts.jsonl"

_RESERVED = ("mean", "turn_1", "turn_2")
_OUTPUT_FORMAT = "[[rating]]"
_TURN_1, _TURN_2 = {"question", "answer"}, {"question_1", "answer_1", "question_2", "answer_2"}
PROMPT_FIELDS = {
    "single-v1": _TURN_1,
    "single-math-v1": _TURN_1 | {"ref_answer_1", "ref_answer_2"},
    "single-v1-multi-turn": _TURN_2,
    "single-math-v1-multi-turn": _TURN_2 | {"ref_answer_1", "ref_answer_2"},
}
"""The judge prompts of single-answer grading, and the fields that each may use."""


@dataclass(frozen=True)
class Question:
    """Hold one question: the user's text of turn 1, and of turn 2 after the first answer."""

    id: int
    category: str
    turns: tuple[str, str]


@dataclass(frozen=True)
class JudgePrompt:
    """Hold a judge prompt; ``template`` has the fields of ``PROMPT_FIELDS[name]`` in braces."""

    name: str
    system_prompt: str
    template: str


@dataclass(frozen=True)
class JudgedTurn:
    """Hold what a judge wrote of a model's answer to one turn, 1 or 2, of a question."""

    question_id: int
    turn: int
    model: str
    text: str


def read_questions(path: str | Path) -> list[Question]:
    """Return the questions of a ``question.jsonl`` (also ``.gz``), in order.

    Raises:
        RequestError: If the file or a row is unusable; names file, line and key.
    """
    return list(_by_key(path, _question, lambda question: question.id, "question_id").values())


def read_references(path: str | Path) -> dict[int, tuple[str, str]]:
    """Return the reference answers to both turns, by question id, from a file of model answers.

    Raises:
        RequestError: If the file or a row is unusable; names file, line and key.
    """
    rows = _by_key(path, _reference, lambda reference: reference[0], "question_id")
    return dict(rows.values())


def read_judge_prompts(path: str | Path) -> dict[str, JudgePrompt]:
    """Return the prompts of single-answer grading by name, ignoring other prompts in the file.

    Raises:
        RequestError: If the file or a row is unusable, or one of the four prompts is missing.
    """
    found = _by_key(path, _prompt, lambda prompt: prompt.name, "name")
    if absent := [name for name in PROMPT_FIELDS if name not in found]:
        raise RequestError(
            f"{path}: no judge prompt is named {absent[0]!r}; single-answer grading needs "
            f"{', '.join(PROMPT_FIELDS)}."
        )
    return {name: found[name] for name in PROMPT_FIELDS}


def read_judgements(path: str | Path, model: str | None = None) -> list[JudgedTurn]:
    """Return the judgements of one model in a ``*_single.jsonl`` (also ``.gz``), in order.

    Ratings are read from the text of a judgement, not from its ``score``.

    Args:
        path: The file.
        model: The model that was judged; needed if the file holds several.

    Raises:
        RequestError: If the file or a row is unusable, or if several models or judges are left.
    """
    rows = [row for _, row in _rows(path, _judgement)]
    models = list(dict.fromkeys(judgement.model for judgement, _ in rows))
    if model is None and len(models) > 1:
        raise RequestError(f"{path} judges several models: {', '.join(models)}; name one: model.")
    if model is not None and model not in models:
        raise RequestError(f"{path} has no model {model!r}; it judges {', '.join(models)}.")
    chosen = [(judgement, judge) for judgement, judge in rows if model in (None, judgement.model)]
    judges = list(dict.fromkeys(judge for _, judge in chosen if judge is not None))
    if len(judges) > 1:
        raise RequestError(
            f"{path} holds judgements by several judges: {', '.join(judges)}; their ratings are "
            "not comparable, so give a file of one."
        )
    return [judgement for judgement, _ in chosen]


def _question(row: Mapping[str, Any]) -> Question:
    category = _field(row, "category", str)
    if not re.fullmatch(r"[\w-]+", category, re.ASCII) or category in _RESERVED:
        raise ValueError(
            f"key 'category' must be letters, digits, _ and -, and none of {', '.join(_RESERVED)}, "
            f"{_got(category)}."
        )
    return Question(_field(row, "question_id", int), category, _two_turns(row, "turns"))


def _reference(row: Mapping[str, Any]) -> tuple[int, tuple[str, str]]:
    choices = _field(row, "choices", list)
    if not choices or not isinstance(choices[0], dict):
        raise ValueError(f"key 'choices' must be a list of objects, {_got(choices)}.")
    return _field(row, "question_id", int), _two_turns(choices[0], "turns")


def _prompt(row: Mapping[str, Any]) -> JudgePrompt:
    name, template = _field(row, "name", str), _field(row, "prompt_template", str)
    prompt = JudgePrompt(name, _field(row, "system_prompt", str), template)
    if name not in PROMPT_FIELDS:
        return prompt
    if row.get("output_format") != _OUTPUT_FORMAT:
        raise ValueError(
            f"key 'output_format' of {name} must be '{_OUTPUT_FORMAT}', "
            f"{_got(row.get('output_format'))}."
        )
    try:
        used = {
            field + (f":{spec}" if spec else "") + (f"!{conversion}" if conversion else "")
            for _, field, spec, conversion in Formatter().parse(template)
            if field is not None
        }
    except ValueError as fault:
        raise ValueError(
            f"key 'prompt_template' of {name}: {fault}; write a brace itself as {{{{ or }}}}."
        ) from fault
    if unknown := sorted(used - PROMPT_FIELDS[name]):
        raise ValueError(
            f"key 'prompt_template' of {name} has the field {{{unknown[0]}}}; there are "
            f"{', '.join(sorted(PROMPT_FIELDS[name]))}. Write a brace itself as {{{{ or }}}}."
        )
    judged = "answer_2" if "answer_2" in PROMPT_FIELDS[name] else "answer"
    if judged not in used:
        raise ValueError(f"key 'prompt_template' of {name} must have the field {{{judged}}}.")
    return prompt


def _judgement(row: Mapping[str, Any]) -> tuple[JudgedTurn, str | None]:
    """Return a judgement and the name of its judge, which FastChat lists with the prompt's."""
    turn = _field(row, "turn", int)
    if turn not in (1, 2):
        raise ValueError(f"key 'turn' must be 1 or 2, got {turn}.")
    model, text = _field(row, "model", str), _field(row, "judgment", str)
    judgement = JudgedTurn(_field(row, "question_id", int), turn, model, text)
    judge = row.get("judge")
    if isinstance(judge, list) and judge:
        judge = judge[0]
    return judgement, str(judge) if judge else None


def _field(row: Mapping[str, Any], key: str, kind: type[T]) -> T:
    names = {str: "a string", int: "a whole number", list: "a list"}
    if key not in row:
        raise ValueError(f"key '{key}' is missing; it must be {names[kind]}.")
    value = row[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"key '{key}' must be {names[kind]}, {_got(value)}.")
    return value


def _two_turns(row: Mapping[str, Any], key: str) -> tuple[str, str]:
    turns = _field(row, key, list)
    if len(turns) != 2 or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError(f"key '{key}' must be two texts, one a turn, {_got(turns)}.")
    return turns[0], turns[1]


def _got(value: object) -> str:
    return f"got {reprlib.repr(value)}"


def _by_key(
    path: str | Path, parse: Callable[[Mapping[str, Any]], T], key: Callable[[T], Any], name: str
) -> dict[Any, T]:
    found: dict[Any, T] = {}
    places: dict[Any, str] = {}
    for place, row in _rows(path, parse):
        if key(row) in found:
            raise RequestError(
                f"{path}, {place}: {name} {key(row)!r} is also on {places[key(row)]}; remove one."
            )
        found[key(row)], places[key(row)] = row, place
    return found


def _rows(path: str | Path, parse: Callable[[Mapping[str, Any]], T]) -> Iterator[tuple[str, T]]:
    """Yield each parsed row with its place; fail on a file without rows."""
    empty = True
    for place, _, row in file_rows("MT-Bench", Path(path)):
        try:
            parsed = parse(row)
        except ValueError as fault:
            raise RequestError(f"{path}, {place}: {fault}") from fault
        yield place, parsed
        empty = False
    if empty:
        raise RequestError(f"{path} has no rows; give one of FastChat's JSONL files.")
