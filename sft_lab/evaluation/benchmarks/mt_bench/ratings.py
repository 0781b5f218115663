"""MT-Bench by single-answer grading: what the judge is asked, its ratings, and the scores.

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
    """Scores by name; judgements without a rating are counted, and are in none of them."""

    by_name: dict[str, Score]
    unparsable: int


def check_references(
    questions: Iterable[Question], references: Mapping[int, tuple[str, str]]
) -> None:
    """Make sure that every question which is judged by a reference has one.

    Raises:
        RequestError: If one has none; names it.
    """
    for question in questions:
        if question.category in REFERENCE_CATEGORIES and question.id not in references:
            raise RequestError(
                f"Question {question.id} of category '{question.category}' has no reference "
                "answer, which its judge needs; add its row to the file of references."
            )


def judge_prompt(
    question: Question,
    answers: Sequence[str],
    turn: int,
    prompts: Mapping[str, JudgePrompt],
    references: Mapping[int, tuple[str, str]],
) -> list[dict[str, str]]:
    """Return the messages that have one turn judged: turn 2 is shown with all that went before.

    Args:
        question: The question.
        answers: The model's answers to both turns; for turn 1 the first is enough.
        turn: 1 or 2.
        prompts: What ``read_judge_prompts`` returns.
        references: What ``read_references`` returns.

    Returns:
        A system message, left out where its prompt is empty, and a user message.

    Raises:
        RequestError: If the question needs a reference answer and has none.
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
    """Return the rating that a judgement gives, 1 to 10, or None where it gives none.

    It is the first number in double brackets, else the first in single ones. FastChat takes any
    number; one off the scale that the judge was told is none here, because it would move the mean
    by as much as it is wrong, and clamping it would invent a rating.

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
    """Return the mean of all ratings, of each turn's and of each category's.

    As in FastChat every rating weighs alike. Intervals are bootstrapped over questions, whose two
    turns are drawn together: the second judgement sees the first answer, so they are not
    independent.

    Args:
        ratings: A rating, or None, by task: the ``items()`` of a dict, or pairs.
        questions: All questions, for their categories.

    Returns:
        ``mean``, ``turn_1``, ``turn_2``, then categories in the order of the questions; a name that
        no rating belongs to is left out.

    Raises:
        ValueError: If a rating belongs to no question.
    """
    categories = {question.id: question.category for question in questions}
    rated: list[tuple[Task, float]] = []
    unparsable = 0
    for task, value in sorted(ratings, key=lambda pair: pair[0]):
        if task[0] not in categories:
            raise ValueError(f"There is no question {task[0]}; leave its ratings out.")
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
