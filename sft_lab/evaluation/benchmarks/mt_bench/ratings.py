"""Grade MT-Bench by single answers: build the judge's prompts, parse ratings, average them.

Source: Zheng et al. (2023), "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", with the
prompts, rating patterns and averages of FastChat's ``llm_judge``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmarks.mt_bench.files import JudgePrompt, Question
from sft_lab.metrics.score import Score, mean_score

Task = tuple[int, int]
"""Question id and turn, 1 or 2."""

REFERENCE_CATEGORIES = ("math", "reasoning", "coding", "arena-hard-200")
MIN_RATING, MAX_RATING = 1.0, 10.0

_RATINGS = tuple(
    re.compile(pattern, re.ASCII) for pattern in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]")
)


@dataclass(frozen=True)
class Scores:
    """Hold scores by name, and the number of judgements without a rating, which no score counts."""

    by_name: dict[str, Score]
    unparsable: int


def check_references(
    questions: Iterable[Question], references: Mapping[int, tuple[str, str]]
) -> None:
    """Check that every question that needs a reference answer has one.

    Raises:
        RequestError: If one is missing; names the question.
    """
    for question in questions:
        if question.category in REFERENCE_CATEGORIES and question.id not in references:
            raise RequestError(
                f"Question {question.id} of category '{question.category}' has no reference "
                "answer, which its judge needs; add its row to the reference file."
            )


def judge_prompt(
    question: Question,
    answers: Sequence[str],
    turn: int,
    prompts: Mapping[str, JudgePrompt],
    references: Mapping[int, tuple[str, str]],
) -> list[dict[str, str]]:
    """Build the messages that ask for a judgement of one turn; turn 2 includes turn 1.

    Args:
        question: The question.
        answers: The model's answers to both turns; for turn 1 the first is enough.
        turn: 1 or 2.
        prompts: As ``read_judge_prompts`` returns them.
        references: As ``read_references`` returns them.

    Returns:
        A system message, unless its prompt is empty, and a user message.

    Raises:
        RequestError: If the question needs a reference answer but has none.
        ValueError: If the turn is neither 1 nor 2, or its answer is missing.
    """
    if turn not in (1, 2) or len(answers) < turn:
        raise ValueError(f"turn must be 1 or 2 and have an answer, got {turn} of {len(answers)}.")
    check_references([question], references)
    fields = {"question": question.turns[0], "answer": answers[0]}
    if turn == 2:
        for number, (asked, answer) in enumerate(zip(question.turns, answers, strict=True), 1):
            fields |= {f"question_{number}": asked, f"answer_{number}": answer}
    kind = "single"
    if question.category in REFERENCE_CATEGORIES:
        kind = "single-math"
        fields["ref_answer_1"], fields["ref_answer_2"] = references[question.id]
    prompt = prompts[f"{kind}-v1" if turn == 1 else f"{kind}-v1-multi-turn"]
    messages = [
        {"role": "system", "content": prompt.system_prompt},
        {"role": "user", "content": prompt.template.format(**fields)},
    ]
    return messages if prompt.system_prompt else messages[1:]


def rating(judgement: str) -> float | None:
    """Return the rating in a judgement, 1 to 10, or None if it has none.

    The rating is the first number in double brackets, else the first in single ones. FastChat
    accepts any number; here one outside the scale in the judge's prompt is no rating, because it
    would distort the mean, and clamping it would invent a rating.

    >>> rating("Clear, but item [2] is wrong. Rating: [[7.5]]"), rating("Rating: [8]")
    (7.5, 8.0)
    >>> rating("Rating: 8/10") is None, rating("Rating: [[85]]") is None
    (True, True)
    """
    for pattern in _RATINGS:
        if match := pattern.search(judgement):
            value = float(match[1])
            return value if MIN_RATING <= value <= MAX_RATING else None
    return None


def scores(ratings: Iterable[tuple[Task, float | None]], questions: Sequence[Question]) -> Scores:
    """Average all ratings, and those of each turn and category.

    As in FastChat, every rating has the same weight. Intervals are bootstrapped over questions,
    whose two turns are drawn together: the second judgement sees the first answer, so they are not
    independent.

    Args:
        ratings: A rating, or None, by task: the ``items()`` of a dict, or pairs.
        questions: All questions, for their categories.

    Returns:
        ``mean``, ``turn_1``, ``turn_2``, then categories in the order of the questions; names
        without ratings are left out.

    Raises:
        ValueError: If a rating's question is unknown.
    """
    categories = {question.id: question.category for question in questions}
    rated: list[tuple[Task, float]] = []
    unparsable = 0
    for task, value in sorted(ratings, key=lambda pair: pair[0]):
        if task[0] not in categories:
            raise ValueError(f"unknown question {task[0]}; leave its ratings out.")
        if value is None:
            unparsable += 1
        else:
            rated.append((task, value))
    members = {
        "mean": rated,
        **{f"turn_{turn}": [pair for pair in rated if pair[0][1] == turn] for turn in (1, 2)},
        **{
            category: [pair for pair in rated if categories[pair[0][0]] == category]
            for category in dict.fromkeys(categories.values())
        },
    }
    by_name = {
        name: mean_score(
            [value for _, value in pairs], groups=[question_id for (question_id, _), _ in pairs]
        )
        for name, pairs in members.items()
        if pairs
    }
    return Scores(by_name, unparsable)
