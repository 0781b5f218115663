"""GSM8K: grade-school word problems, with the answer's number extracted in three ways."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict

_GREATEST = 10**300  # a larger value is a model repeating a digit, not an answer
_TOLERANCE = Fraction(1, 10_000)
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_THOUSANDS = re.compile(
    r"(?<=\d)(?:\{,\}|\\[,;: ]|,\\!|[\N{NBSP}\N{NNBSP}\N{THIN SPACE}])(?=\d{3}(?!\d))"
)
_BRACE = re.compile(r"\\boxed\s*+\{|\\[{}]|[{}]")  # an escaped brace opens and closes nothing
# Repetitions are possessive, so that the time grows linearly with the text.
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)])[-\N{MINUS SIGN}\N{EN DASH}])?  # in "10-5" and "(2)-5" it is not a sign
    (?:[$€£¥]\s?)?
    (?P<inner_sign>(?<=[$€£¥])-)?
    (?:
      (?P<latex_whole>\d++)?\\[dt]?frac\{(?P<above>[\d,]++)\}\{(?P<below>[\d,]++)\}
    | (?<![\d/])(?:(?P<whole>\d++)[ ](?=\d++/\d))?
      (?P<numerator>\d{1,3}(?:,\d{3})++(?!\d)|\d++)\s?/\s?(?P<denominator>\d++)(?![.,]*\d|/)
    | (?P<decimal>(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++)
      (?:[eE](?P<exponent>[+-]?\d{1,3})(?!\w))?
    )
    """,
    re.VERBOSE,
)


def strict_number(completion: str) -> Fraction | None:
    r"""Return the number after the first ``#### ``, or None.

    Only digits, commas, points and a leading ``-`` are accepted, and commas are dropped wherever
    they are: ``#### $18`` and ``#### +5`` have no answer, ``#### 1,2`` is 12. Text after the number
    is ignored: ``#### 250 + 20 = 270`` is 250.

    Source: the pattern of Cobbe et al. (2021), "Training Verifiers to Solve Math Word Problems",
    applied as in Yuan et al. (2023), arXiv 2308.01825: everything after a null character is
    ignored, and a match that does not parse as a number is no answer.

    >>> strict_number("16 - 3 - 4 = 9 eggs\n#### 1,018. And #### 7")
    Fraction(1018, 1)
    """
    match = _STRICT.search(completion.partition("\0")[0])
    try:
        value = Fraction(match[1].replace(",", "")) if match else None
    except ValueError:  # "1.2.3", or points alone
        return None
    return None if value is None or abs(value) > _GREATEST else value


def flexible_number(completion: str) -> Fraction | None:
    r"""Return the number in the last ``\boxed{}``, else the last number, or None.

    A box before the last ``####``, or without a number, is passed over. ``#### 250 + 20 = 270`` is
    270. Thousands separators (``1,200``, LaTeX's ``1{,}200`` and ``1\,200``), currency signs,
    decimals, signs, fractions (``3/4``, ``1 1/2``, ``\frac{3}{4}``) and exponents are read; other
    commas separate numbers, and a percent sign is ignored: 50 % is 50. A minus after a digit,
    letter or bracket is a subtraction, not a sign.

    >>> flexible_number("She makes $1,018.50 a week, or 75% of it."), flexible_number("-1/2")
    (Fraction(75, 1), Fraction(-1, 2))
    >>> flexible_number(r"She drank \boxed{3} cups in 2 days.")
    Fraction(3, 1)
    """
    boxed = boxed_number(completion.rpartition("####")[2])
    return _last_number(completion) if boxed is None else boxed


def boxed_number(completion: str) -> Fraction | None:
    r"""Return the last number in the last ``\boxed{}`` that is closed, or None.

    >>> boxed_number(r"\boxed{\frac{3}{4}}, or \boxed{75\%} of 12"), boxed_number("75")
    (Fraction(75, 1), None)
    """
    opened: list[int | None] = []  # by brace, where its box begins, or None
    box = slice(0)
    for match in _BRACE.finditer(completion):
        if match[0] == "}":
            start = opened.pop() if opened else None
            box = box if start is None else slice(start, match.start())
        elif match[0][-1] == "{" and match[0] != r"\{":
            opened.append(None if match[0] == "{" else match.end())
    return _last_number(completion[box])


def _last_number(completion: str) -> Fraction | None:
    matches = list(_NUMBER.finditer(_THOUSANDS.sub(",", completion)))
    values = map(_value, reversed(matches))
    return next((value for value in values if value is not None), None)


def _value(match: re.Match[str]) -> Fraction | None:
    found = match.groupdict(default="")
    above = (found["above"] + found["numerator"]).replace(",", "")
    below = (found["below"] + found["denominator"]).replace(",", "")
    try:
        if above:
            whole = int(found["latex_whole"] + found["whole"] or 0)
            value = whole + Fraction(int(above), int(below))
        else:
            value = Fraction(found["decimal"].replace(",", ""))
            value *= Fraction(10) ** int(found["exponent"] or 0)
    except (ValueError, ZeroDivisionError):  # Python refuses numbers of more than 4,300 digits
        return None
    if value > _GREATEST:
        return None
    return -value if found["sign"] or found["inner_sign"] else value


class GSM8K(Benchmark):
    r"""Share of completions with the right number, extracted in three ways.

    ``flexible``, the main score, is the number in the last ``\boxed{}``, else the last number;
    ``strict`` the number after the first ``####``; ``boxed`` the number in a box alone.

    Rows are the data set's own: ``question``, and ``answer``, which ends with ``#### N``; the item
    of row n, counted from 0, is ``GSM8K/n``. Protocol: zero-shot, the prompt is the question.
    Numbers that differ by less than 0.0001 are equal. A completion without an answer is wrong.
    The form of the data set's answers, and of ``strict``, is a number after ``####``.
    """

    published = "openai/gsm8k"
    hub_split = "test"
    hub_subset = "main"
    local_file = "grade_school_math/data/test.jsonl of github.com/openai/grade-school-math"
    score_names = ("flexible", "strict", "boxed")
    strict_score = "strict"
    form_mark = "form"
    row_fields: ClassVar[Mapping[str, type]] = {"question": str, "answer": str}
    right_row: ClassVar[Mapping[str, Any]] = {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}

    @override
    def agrees_with(self) -> Mapping[str, str]:
        return {"strict": "the grader of RFT (arXiv 2308.01825)"}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        if strict_number(row["answer"]) is None:
            raise ValueError(f"key 'answer' must end with '#### N', got {row['answer'][-40:]!r}.")

    @override
    def item(self, row: Mapping[str, Any], number: int) -> Item:
        return Item(f"GSM8K/{number}", ({"role": "user", "content": row["question"]},), row)

    @override
    def texts(self, item: Item) -> list[str]:
        return [item.row["question"], item.row["answer"]]

    @override
    def reference_answer(self, item: Item) -> str:
        answer: str = item.row["answer"]
        return answer

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for item, completion in zip(items, completions, strict=True):
            right = strict_number(item.row["answer"])
            numbers = {
                "flexible": flexible_number(completion),
                "strict": strict_number(completion),
                "boxed": boxed_number(completion),
            }
            marks = {name: _equal(number, right) for name, number in numbers.items()}
            marks["form"] = numbers["strict"] is not None
            read = [f"{name} {_shown(number)}" for name, number in numbers.items()]
            verdicts.append(Verdict(marks, ", ".join([*read, f"expected {_shown(right)}"])))
        return verdicts


def _equal(number: Fraction | None, right: Fraction | None) -> bool:
    return number is not None and right is not None and abs(number - right) < _TOLERANCE


def _shown(number: Fraction | None) -> str:
    if number is None:
        return "no number"
    return str(number) if number.denominator == 1 else f"{float(number):g}"  # below 1e300
