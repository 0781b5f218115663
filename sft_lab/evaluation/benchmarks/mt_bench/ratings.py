"""Grade MT-Bench by single answers: build the judge's prompts and parse ratings.

Source: Zheng et al. (2023), "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", with the
prompts and rating patterns of FastChat's ``llm_judge``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmarks.mt_bench.files import JudgePrompt, Question
from sft_lab.evaluation.reasoning import split_reasoning

REFERENCE_CATEGORIES = ("math", "reasoning", "coding", "arena-hard-200")
MIN_RATING, MAX_RATING = 1.0, 10.0

_RATINGS = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (r"\[\[(\d+(?:\.\d*)?)\]\]", r"\[(\d+(?:\.\d*)?)\]")
)


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
    would distort the mean, and clamping it would invent a rating. Reasoning before the judgement
    is not read.

    >>> rating("Clear, but item [2] is wrong. Rating: [[7.5]]"), rating("Rating: [8]")
    (7.5, 8.0)
    >>> rating("Rating: 8/10") is None, rating("Rating: [[85]]") is None
    (True, True)
    """
    text = split_reasoning(judgement).answer
    for pattern in _RATINGS:
        if match := pattern.search(text):
            value = float(match[1])
            return value if MIN_RATING <= value <= MAX_RATING else None
    return None
