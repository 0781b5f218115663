"""GSM8K: grade-school word problems with a number as answer, read strictly and flexibly."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict

_GREATEST = 10**300  # beyond it is no number but a model that repeats a digit
_TOLERANCE = Fraction(1, 10_000)
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)])[-\N{MINUS SIGN}\N{EN DASH}])?  # of "10-5" and "(2)-5" it is no sign
    (?:[$€£¥]\s?)?
    (?P<inner_sign>(?<=[$€£¥])-)?
    (?:
      (?P<latex_whole>\d+)?\\[dt]?frac\{(?P<above>[\d,]+)\}\{(?P<below>[\d,]+)\}
    | (?<![\d/])(?:(?P<whole>\d+)[ ](?=\d+/\d))?(?P<numerator>[\d,]*\d)\s?/\s?
      (?P<denominator>\d+)(?![\d.,]*\d|/)
    | (?P<decimal>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
      (?:[eE](?P<exponent>[+-]?\d{1,3})(?!\w))?
    )
    """,
    re.VERBOSE,
)


def strict_number(completion: str) -> Fraction | None:
    r"""Return the number after the first ``#### ``, or None.

    What stands there must be digits, commas and points alone: ``#### $18`` has no answer, and a
    text that goes on after its answer is judged by the answer.

    Source: Cobbe et al. (2021), "Training Verifiers to Solve Math Word Problems", whose pattern
    this is, as Yuan et al. (2023), arXiv 2308.01825, apply it: nothing counts behind a null
    character, and what is no number is no answer.

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
    r"""Return the last number, or None.

    Thousands' commas, currency signs, decimals, signs, fractions (``3/4``, ``1 1/2``,
    ``\frac{3}{4}``) and exponents are read; a percent sign is not: 50 % is 50. A minus behind a
    digit, letter or bracket subtracts and is no sign.

    >>> flexible_number("She makes $1,018.50 a week, or 75% of it."), flexible_number("-1/2")
    (Fraction(75, 1), Fraction(-1, 2))
    """
    numbers = map(_value, _NUMBER.finditer(completion.replace("{,}", ",")))
    known = [number for number in numbers if number is not None]
    return known[-1] if known else None


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
    except (ValueError, ZeroDivisionError):  # Python reads no number of more than 4,300 digits
        return None
    if value > _GREATEST:
        return None
    return -value if found["sign"] or found["inner_sign"] else value


class GSM8K(Benchmark):
    """Share of completions with the right number: ``strict`` after ``####``, ``flexible`` the last.

    Rows are the data set's own: ``question`` and ``answer``, which ends on ``#### N``; the item of
    the n-th row is ``GSM8K/n``, from 0 on. Protocol: the question alone is asked, no examples. Two
    numbers are equal when they differ by less than 0.0001. No answer is never right.
    """

    score_names = ("strict", "flexible")
    row_fields: ClassVar[Mapping[str, type]] = {"question": str, "answer": str}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        if strict_number(row["answer"]) is None:
            raise ValueError(f"key 'answer' must end on '#### N', got {row['answer'][-40:]!r}.")

    @override
    def item(self, row: Mapping[str, Any], number: int) -> Item:
        return Item(f"GSM8K/{number}", ({"role": "user", "content": row["question"]},), row)

    @override
    def texts(self, item: Item) -> list[str]:
        return [item.row["question"], item.row["answer"]]

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for item, completion in zip(items, completions, strict=True):
            right = strict_number(item.row["answer"])
            strict, flexible = strict_number(completion), flexible_number(completion)
            marks = {"strict": _equal(strict, right), "flexible": _equal(flexible, right)}
            read = f"strict {_shown(strict)}, flexible {_shown(flexible)}, expected {_shown(right)}"
            verdicts.append(Verdict(marks, read))
        return verdicts


def _equal(number: Fraction | None, right: Fraction | None) -> bool:
    return number is not None and right is not None and abs(number - right) < _TOLERANCE


def _shown(number: Fraction | None) -> str:
    if number is None:
        return "no number"
    return str(number) if number.denominator == 1 else f"{float(number):g}"  # below 1e300
