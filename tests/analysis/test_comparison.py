from dataclasses import replace

import pytest
from compared_runs import ENTRY, compared, group

from sft_lab.analysis.groups import RunGroup
from sft_lab.metrics.paired import paired_shares

NONE, ALL = [0] * 10, [1] * 10


def test_a_run_compared_with_itself_differs_by_nothing() -> None:
    a = group("a", [NONE, [1] * 6 + [0] * 4])
    ((_, change),) = compared([a, a]).differences
    assert change.difference is not None
    assert (change.difference.value, change.difference.p, change.p_holm) == (0, 1, 1)
    assert change.conclusion == "inconclusive"  # ten items cannot rule out a difference
    assert (change.gained, change.lost) == ((), ())


def test_a_difference_is_tested_on_the_same_items() -> None:
    a, b = group("a", [NONE, [1, 0, *ALL[2:]]]), group("b", [NONE, [0, 1, *NONE[2:]]])
    ((_, change),) = compared([a, b]).differences
    # 9 lost, 1 gained: 2 * (1 + 10) / 2^10.
    assert change.difference is not None
    assert change.difference.p == pytest.approx(22 / 1024)
    assert (change.ability.key, change.before, change.after) == ("gsm8k/strict", "a", "b")
    assert change.gained == ("i1",)
    assert change.lost == ("i0", *(f"i{n}" for n in range(2, 10)))


def test_holm_is_over_all_tests_of_the_comparison() -> None:
    groups = [group("a", [NONE, ALL]), group("b", [NONE, NONE]), group("c", [NONE, [1, *NONE[1:]]])]
    tests = compared(groups).comparisons
    # Against a: 2 / 2^10 twice as lost 10 and 9; within: a gained 10, b nothing, c one.
    raw = [test.difference.p for test in tests if test.difference]
    assert raw == pytest.approx([2 / 1024, 2 / 512, 2 / 1024, 1, 1])
    holm = [test.p_holm for test in tests]
    assert holm == pytest.approx([5 * 2 / 1024, 3 * 2 / 512, 5 * 2 / 1024, 1, 1])
    conclusions = [test.conclusion for test in tests]
    assert conclusions == ["lower", "lower", "higher", "not tested", "inconclusive"]


def test_no_effect_needs_a_test_of_its_own() -> None:
    many = [1, 0] * 400
    a, b = group("a", [[0] * 800, many]), group("b", [[0] * 800, [0, 1, *many[2:]]])
    ((_, change),) = compared([a, b]).differences
    assert (change.conclusion, change.is_equivalent) == ("no effect", True)
    few = [1, 0] * 20
    a, b = group("a", [[0] * 40, few]), group("b", [[0] * 40, few])
    ((_, change),) = compared([a, b]).differences
    assert (change.p_holm, change.conclusion) == (1, "inconclusive")


def test_what_was_never_learned_is_not_tested() -> None:
    choice = replace(ENTRY, chance=0.25)
    guessed = [group(name, [NONE, [1] * 4 + [0] * 6], entry=choice) for name in ("a", "b")]
    ((_, change),) = compared(guessed).differences
    assert change.conclusion == "not tested"  # 4 of 10 may be guesses at one in four
    base = [1, 0] * 20
    unchanged = group("a", [base, base]), group("b", [base, [*base[2:], 1, 0]])
    ((_, change),) = compared(unchanged).differences
    assert change.conclusion == "not tested"  # both as the base
    lost = group("a", [base, base]), group("b", [base, [0] * 40])
    ((_, change),) = compared(lost).differences
    assert change.conclusion == "lower"  # what pretraining gave can be lost


def test_the_level_left_for_a_test_counts_the_tests_that_were_not_shown() -> None:
    groups = [group("a", [NONE, ALL]), group("b", [NONE, NONE]), group("c", [NONE, [1, *NONE[1:]]])]
    found = compared(groups)
    # Five tests, three of them shown.
    assert found.measured.family.size() == 5
    assert found.measured.family.level == 0.05 / 2


def test_another_reference_turns_the_difference_round() -> None:
    groups = [group("a", [NONE, ALL]), group("b", [NONE, NONE])]
    ((index, change),) = compared(groups, 1).differences
    assert (index, change.before, change.conclusion) == (0, "b", "higher")


def test_forgetting_is_from_the_best_boundary_and_pays_for_the_choice() -> None:
    a = group("a", [NONE, [1] * 9 + [0], [1, *NONE[1:]]])
    ((_, drop),) = compared([a]).forgetting
    change = drop.comparison
    assert (drop.best.stage, change.lost) == ("s1", tuple(f"i{n}" for n in range(1, 9)))
    assert change.difference is not None
    # Eight lost, the best of two boundaries: 2 * 2 / 2^8.
    assert (change.difference.value, change.difference.p) == (-0.8, pytest.approx(4 / 256))
    assert change.conclusion == "lower"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (group("b", [NONE, ALL], stages=3), "'b' has not reached its end"),
        (group("b", [NONE, ALL], prompt="Q"), "items differ"),
        (group("b", [[0] * 10, [None] * 9 + [1]]), ""),
        (group("b", [NONE, ALL], [NONE, ALL]), "a single seed"),
    ],
)
def test_what_cannot_be_tested_says_why(other: RunGroup, reason: str) -> None:
    ((_, change),) = compared([group("a", [NONE, ALL]), other]).differences
    assert reason in change.why_not
    assert (change.conclusion is None) == bool(reason)


def test_only_items_that_both_sides_graded_are_compared() -> None:
    a, b = group("a", [NONE, [1, 1, None, *ALL[3:]]]), group("b", [NONE, [None, *ALL[1:]]])
    ((_, change),) = compared([a, b]).differences
    assert change.difference is not None
    assert change.difference.n == 8


def test_ratings_are_compared_by_the_bootstrap() -> None:
    entry = replace(ENTRY, scale=(1, 10))
    a = group("a", [[2.0] * 8, [3, 4, 5, 6, 7, 8, 2, 1]], entry=entry)
    b = group("b", [[2.0] * 8, [5, 6, 8, 8, 9, 9, 4, 5]], entry=entry)
    ((_, change),) = compared([a, b]).differences
    assert change.difference is not None
    assert change.difference.test == "paired bootstrap"
    assert (change.difference.value, change.conclusion, change.gained) == (2.25, "higher", ())


def test_seeds_are_taken_together() -> None:
    half = [1, 0] * 20
    low = group("a", *([[0] * 40, [*half[n:], *half[:n]]] for n in range(3)))
    high = group("b", *([[0] * 40, [1] * 38 + [0, 0]] for _ in range(3)))
    found = compared([low, high])
    ((_, change),) = found.differences
    assert change.difference is not None
    assert change.difference.test == "t over seeds and items"
    assert (change.difference.value, change.conclusion) == (pytest.approx(0.45), "higher")
    score = found.score(low, low.abilities[0], 1)
    assert score is not None
    assert (score.value, score.n) == (0.5, 120)


def test_a_run_at_a_boundary_has_the_score_it_has_recorded() -> None:
    a = group("a", [ALL[:4], ALL[:4]])
    found = compared([a])
    recorded = a.runs[0].boundaries[0].scores["gsm8k/strict"]
    assert found.score(a, a.abilities[0], 0) == recorded
    ((_, drop),) = found.forgetting
    assert drop.comparison.difference == paired_shares(ALL[:4], ALL[:4])
