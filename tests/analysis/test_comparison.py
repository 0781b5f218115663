from dataclasses import replace

import pytest
from compared_runs import ENTRY, arm, measured

from sft_lab.analysis.arms import Arm
from sft_lab.analysis.comparison import comparison, score_at
from sft_lab.metrics.paired import paired_shares

NONE, ALL = [0] * 10, [1] * 10


def test_a_run_compared_with_itself_differs_by_nothing() -> None:
    a = arm("a", [NONE, [1] * 6 + [0] * 4])
    (change,) = comparison([a, a], 0, []).differences
    assert change.difference is not None
    assert (change.difference.value, change.difference.p, change.p_holm) == (0, 1, 1)
    assert change.verdict == "no difference shown"
    assert (change.gained, change.lost) == ((), ())


def test_a_difference_is_tested_on_the_same_items() -> None:
    a, b = arm("a", [NONE, [1, 0, *ALL[2:]]]), arm("b", [NONE, [0, 1, *NONE[2:]]])
    (change,) = comparison([a, b], 0, []).differences
    # 9 lost, 1 gained: 2 * (1 + 10) / 2^10.
    assert change.difference is not None
    assert change.difference.p == pytest.approx(22 / 1024)
    assert (change.key, change.before, change.arm) == ("gsm8k/strict", "a", 1)
    assert change.gained == ("i1",)
    assert change.lost == ("i0", *(f"i{n}" for n in range(2, 10)))


def test_holm_is_over_all_tests_of_the_comparison() -> None:
    arms = [arm("a", [NONE, ALL]), arm("b", [NONE, NONE]), arm("c", [NONE, [1, *NONE[1:]]])]
    compared = comparison(arms, 0, [])
    # Against a: 2 / 2^10 twice as lost 10 and 9; within: a gained 10, b nothing, c one.
    raw = [c.difference.p for c in (*compared.differences, *compared.forgetting) if c.difference]
    assert raw == pytest.approx([2 / 1024, 2 / 512, 2 / 1024, 1, 1])
    holm = [c.p_holm for c in (*compared.differences, *compared.forgetting)]
    assert holm == pytest.approx([5 * 2 / 1024, 3 * 2 / 512, 5 * 2 / 1024, 1, 1])
    verdicts = [c.verdict for c in (*compared.differences, *compared.forgetting)]
    assert verdicts == ["lower", "lower", "higher", "no difference shown", "no difference shown"]


def test_another_reference_turns_the_difference_round() -> None:
    arms = [arm("a", [NONE, ALL]), arm("b", [NONE, NONE])]
    (change,) = comparison(arms, 1, []).differences
    assert (change.arm, change.before, change.verdict) == (0, "b", "higher")


def test_forgetting_is_from_the_best_boundary_and_pays_for_the_choice() -> None:
    a = arm("a", [NONE, [1] * 9 + [0], [1, *NONE[1:]]])
    (change,) = comparison([a], 0, []).forgetting
    assert (change.before, change.lost) == ("s1", tuple(f"i{n}" for n in range(1, 9)))
    assert change.difference is not None
    # Eight lost, the best of two boundaries: 2 * 2 / 2^8.
    assert (change.difference.value, change.difference.p) == (-0.8, pytest.approx(4 / 256))
    assert change.verdict == "lower"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (arm("b", [NONE, ALL], stages=3), "'b' has not come to its end"),
        (arm("b", [NONE, ALL], prompt="Q"), "items differ"),
        (arm("b", [[0] * 10, [None] * 9 + [1]]), ""),
        (Arm("b", (measured("b", [NONE, ALL]), measured("b", [NONE, ALL], 1))), "a single seed"),
    ],
)
def test_what_cannot_be_tested_says_why(other: Arm, reason: str) -> None:
    (change,) = comparison([arm("a", [NONE, ALL]), other], 0, []).differences
    assert reason in change.left_out
    assert (change.verdict is None) == bool(reason)


def test_only_items_that_both_sides_graded_are_compared() -> None:
    a, b = arm("a", [NONE, [1, 1, None, *ALL[3:]]]), arm("b", [NONE, [None, *ALL[1:]]])
    (change,) = comparison([a, b], 0, []).differences
    assert change.difference is not None
    assert change.difference.n == 8


def test_ratings_are_compared_by_the_bootstrap() -> None:
    entry = replace(ENTRY, scale=(1, 10))
    a = arm("a", [[2.0] * 8, [3, 4, 5, 6, 7, 8, 2, 1]], entry=entry)
    b = arm("b", [[2.0] * 8, [5, 6, 8, 8, 9, 9, 4, 5]], entry=entry)
    (change,) = comparison([a, b], 0, []).differences
    assert change.difference is not None
    assert change.difference.test == "paired bootstrap"
    assert (change.difference.value, change.verdict, change.gained) == (2.25, "higher", ())


def test_seeds_are_taken_together() -> None:
    half = [1, 0] * 20
    low = [measured("a", [[0] * 40, [*half[n:], *half[:n]]], n) for n in range(3)]
    high = [measured("b", [[0] * 40, [1] * 38 + [0, 0]], n) for n in range(3)]
    arms = [Arm("a", tuple(low)), Arm("b", tuple(high))]
    (change,) = comparison(arms, 0, []).differences
    assert change.difference is not None
    assert change.difference.test == "t over seeds and items"
    assert (change.difference.value, change.verdict) == (pytest.approx(0.45), "higher")
    score = score_at(arms[0], "gsm8k", 1)
    assert score is not None
    assert (score.value, score.n) == (0.5, 120)


def test_a_run_at_a_boundary_has_the_score_it_has_recorded() -> None:
    assert score_at(arm("a", [[1, 0], [1, 1]]), "gsm8k", 0) is not None
    (change,) = comparison([arm("a", [ALL[:4], ALL[:4]])], 0, []).forgetting
    assert change.difference == paired_shares(ALL[:4], ALL[:4])
