"""The conclusion of one run: verdict words, intervals by hand, and what has none yet."""

from dataclasses import replace

from compared_runs import answers, run

from sft_lab.analysis.conclusion import conclusion
from sft_lab.runs.results import RunResult

NONE, ALL, MOST = [0.0] * 10, [1.0] * 10, [1.0] * 8 + [0.0] * 2


def until(found: RunResult, step: int) -> RunResult:
    return replace(found, points=tuple(point for point in found.points if point.step <= step))


def test_a_lost_ability_is_forgotten_with_its_interval() -> None:
    # 10 of 10, then 0: exact p 2/2**10, twice since the best is of two boundaries. Wilson's bound
    # for 10 of 10 is 10 / (10 + 1.96**2) = 0.7225, and Newcombe's -1 + sqrt(2) * 0.2775 = -0.608.
    lost = run("r", [NONE, ALL, NONE])
    assert conclusion(lost, answers) == (
        "Forgetting in this run (1 seed): math forgotten, -100.0 points [-100.0, -60.8]."
    )


def test_a_drop_whose_interval_includes_0_is_inconclusive() -> None:
    # 2 of 10 lost: p 2/2**2, twice. Wilson for 8 of 10: [0.4902, 0.9433]; -0.2 - 0.3098 and
    # -0.2 + sqrt(0.1433**2 + 0.2775**2).
    assert conclusion(run("r", [NONE, ALL, MOST]), answers) == (
        "Forgetting in this run (1 seed): math inconclusive, -20.0 points [-51.0, 11.2], p 1.00."
    )


def test_what_cannot_have_been_forgotten_yet_says_why() -> None:
    found = run("r", [NONE, ALL, MOST])
    assert conclusion(until(found, 0), answers) == (
        "Forgetting by step 0 of 20 of this run (1 seed): math not trained yet."
    )
    assert conclusion(until(found, 10), answers) == (
        "Forgetting by step 10 of 20 of this run (1 seed): math just trained."
    )
    assert conclusion(run("one", [NONE, ALL]), answers) == (
        "Forgetting in this run (1 seed): math trained last."
    )
    assert conclusion(run("never", [NONE, NONE, NONE]), answers) == (
        "Forgetting in this run (1 seed): math never above chance."
    )


def test_an_evaluation_on_a_part_of_the_items_concludes_nothing() -> None:
    found = run("r", [NONE, ALL, NONE])
    last = replace(found.points[-1], partial={"gsm8k": 4})
    assert conclusion(replace(found, points=(*found.points[:2], last)), answers) == conclusion(
        until(found, 10), answers
    )
    assert conclusion(replace(found, points=()), answers).endswith("on all its items yet.")
