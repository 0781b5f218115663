"""Verdicts: the first word that applies, from comparisons whose tests are given."""

from collections.abc import Sequence

import pytest

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.measurements import Comparison
from sft_lab.analysis.verdicts import Direction, Verdict, verdict
from sft_lab.metrics.paired import Difference

MATH = Ability("math", "world_math/format_free", source="math")


def comparison(
    value: float,
    p: float = 1.0,
    equivalent: float = 1.0,
    no_loss: float = 1.0,
    seeds: tuple[int, int] = (3, 3),
    is_learned: bool = True,
) -> Comparison:
    found = Difference(value, value - 0.1, value + 0.1, p, 200, 0, 0, "t", 8)
    return Comparison(
        "q",
        MATH,
        "a",
        "b",
        found,
        is_learned=is_learned,
        p_holm=p,
        p_equivalent=equivalent,
        p_no_loss=no_loss,
        seeds=seeds,
    )


SHOWN, LOST, OPEN, SAME = (
    comparison(0.2, p=0.01),
    comparison(-0.2, p=0.01),
    comparison(0.02),
    comparison(0.01, equivalent=0.01, no_loss=0.004),
)
NONE = Comparison("q", MATH, "a", "b", None, "no run")


@pytest.mark.parametrize(
    ("direction", "found", "expected"),
    [
        ("higher", SHOWN, "supported"),
        ("higher", LOST, "not supported"),
        ("higher", SAME, "not supported"),  # any gain is smaller than the margin
        ("higher", OPEN, "inconclusive"),
        ("lower", LOST, "supported"),
        ("lower", SHOWN, "not supported"),
        ("same", SAME, "supported"),
        ("same", OPEN, "inconclusive"),  # no significance is no equivalence
        ("same", SHOWN, "not supported"),
        ("same", comparison(0.03, p=0.01), "inconclusive"),  # shown, but smaller than the margin
        ("not_lower", comparison(0.2, no_loss=0.01), "supported"),
        ("not_lower", LOST, "not supported"),
        ("not_lower", OPEN, "inconclusive"),
    ],
)
def test_a_claim_is_judged_by_the_test_that_it_needs(
    direction: Direction, found: Comparison, expected: Verdict
) -> None:
    assert verdict(direction, [found]) == expected


def test_the_first_word_that_applies() -> None:
    never = comparison(0.2, p=0.01, seeds=(1, 1), is_learned=False)
    one = comparison(0.2, p=0.01, seeds=(1, 3))
    needs = ["equal_steps"]
    assert verdict("higher", [NONE], needs=needs) == "not tested"
    assert verdict("higher", [never], needs=needs) == "not tested"
    assert verdict("higher", [one], needs=needs) == "not controlled"
    assert verdict("higher", [one], {"equal_steps": [NONE]}, needs) == "not controlled"
    assert verdict("higher", [one], {"equal_steps": [SHOWN]}, needs) == "one seed only"
    assert verdict("higher", [SHOWN], {"equal_steps": [one]}, needs) == "one seed only"
    assert verdict("higher", [SHOWN], {"equal_steps": [SHOWN]}, needs) == "supported"


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (SHOWN, "supported"),
        (OPEN, "inconclusive"),
        (SAME, "not supported"),
        (LOST, "not supported"),
    ],
)
def test_with_a_control_what_remains_after_it_is_judged(
    control: Comparison, expected: Verdict
) -> None:
    assert verdict("higher", [SHOWN], {"equal_steps": [control]}, ["equal_steps"]) == expected


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([SAME, SAME], "supported"),
        ([SAME, OPEN], "inconclusive"),
        ([SAME, SHOWN], "not supported"),
        ([SAME, NONE], "inconclusive"),  # nothing is known of that level
        ([SAME, comparison(0.0, is_learned=False)], "inconclusive"),
    ],
)
def test_no_effect_needs_every_level(levels: Sequence[Comparison], expected: Verdict) -> None:
    assert verdict("same", levels) == expected
