from collections import Counter

import pytest

from sft_lab.data.plan import RowRef, plan_stage, seeded, spread_evenly
from sft_lab.data.rendering import IGNORED, TokenizedRow


def row(num_tokens: int, num_targets: int = 1) -> TokenizedRow:
    ids = list(range(num_tokens))
    return TokenizedRow(ids, [IGNORED] * (num_tokens - num_targets) + ids[-num_targets:])


def windows_of(passes: list[list[list[RowRef]]]) -> list[list[int]]:
    return [[len(window) for window in windows] for windows in passes]


def test_every_window_holds_the_whole_mixture() -> None:
    counts = {"general": 3000, "math": 187, "code": 60}
    total = sum(counts.values())
    order = spread_evenly({name: range(n) for name, n in counts.items()}, 0, "chat", 0)
    assert Counter(ref.source for ref in order) == counts
    # A stretch from a to b of the pass holds between n(b - a) - 1 and n(b - a) + 1 rows of a source
    # of n; where it lies in the order moves by at most one row of each source at each end.
    size = total // 20
    for start in range(0, total - size + 1, 7):
        window = Counter(ref.source for ref in order[start : start + size])
        for name, n in counts.items():
            assert abs(window[name] - n * size / total) <= 4


def test_a_few_replayed_rows_never_fall_together() -> None:
    order = spread_evenly({"chat": range(1000), "math": range(10)}, 0, "chat", 0)
    places = [place for place, ref in enumerate(order) if ref.source == "math"]
    # The j-th of 10 lies in the j-th tenth of the pass, give or take a row of the other source.
    assert all(101 * j - 1 <= place <= 101 * (j + 1) + 1 for j, place in enumerate(places))


def test_order_depends_on_seed_stage_and_pass_only() -> None:
    rows = {"math": range(20), "code": range(10)}
    order = spread_evenly(rows, 0, "mix", 0)
    assert spread_evenly(dict(reversed(rows.items())), 0, "mix", 0) == order
    others = [(1, "mix", 0), (0, "mix2", 0), (0, "mix", 1)]
    assert all(spread_evenly(rows, *other) != order for other in others)
    maths = [ref for ref in order if ref.source == "math"]
    alone = spread_evenly({"math": range(20)}, 0, "mix", 0)
    assert maths == alone  # another source moves no row of this one


def test_order_is_the_same_on_every_machine() -> None:
    assert seeded(0, "mix", 0, "math").random() == 0.9167769770867268
    order = spread_evenly({"math": range(4), "code": range(2)}, 0, "mix", 0)
    assert [f"{ref.source}{ref.index}" for ref in order] == [
        "math2",
        "code0",
        "math1",
        "math3",
        "math0",
        "code1",
    ]


def test_epochs_pass_over_all_rows_each_in_an_order_of_its_own() -> None:
    plan = plan_stage("s", {"a": range(5)}, {"a": [row(3)] * 5}, batch_size=2, seed=0, epochs=2)
    assert windows_of(plan.passes) == [[2, 2, 1], [2, 2, 1]]  # the last window is what is left
    assert plan.num_steps == 6
    first, second = ([ref.index for window in p for ref in window] for p in plan.passes)
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second


def test_max_steps_end_in_the_middle_of_a_pass() -> None:
    plan = plan_stage("s", {"a": range(5)}, {"a": [row(3)] * 5}, batch_size=2, seed=0, max_steps=4)
    assert windows_of(plan.passes) == [[2, 2, 1], [2]]
    whole = plan_stage("s", {"a": range(5)}, {"a": [row(3)] * 5}, batch_size=2, seed=0, max_steps=3)
    assert whole.passes == plan.passes[:1]  # no empty pass behind it


@pytest.mark.parametrize(("max_tokens", "steps"), [(1, 1), (6, 1), (7, 2), (12, 2), (18, 4)])
def test_max_tokens_end_with_the_step_that_reaches_them(max_tokens: int, steps: int) -> None:
    # Steps of 6, 6, 3 and again 6 tokens.
    plan = plan_stage(
        "s", {"a": range(5)}, {"a": [row(3)] * 5}, batch_size=2, seed=0, max_tokens=max_tokens
    )
    assert plan.num_steps == steps


def test_the_first_limit_reached_ends_a_stage() -> None:
    plan = plan_stage(
        "s", {"a": range(5)}, {"a": [row(3)] * 5}, batch_size=2, seed=0, epochs=1, max_steps=99
    )
    assert plan.num_steps == 3


def test_count_sums_over_passes_and_repeated_rows() -> None:
    tokenized = {"a": [row(10, 4), row(20, 5)], "b": [row(7, 1)]}
    plan = plan_stage(
        "s",
        {"a": [0, 1, 0], "b": [0], "c": []},
        {**tokenized, "c": []},
        batch_size=3,
        seed=0,
        epochs=2,
    )
    assert plan.count(tokenized) == {
        "a": {"samples": 6, "tokens": 80, "target_tokens": 26},
        "b": {"samples": 2, "tokens": 14, "target_tokens": 2},
    }


def test_a_stage_without_end_or_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="Stage 's' has no end"):
        plan_stage("s", {"a": [0]}, {"a": [row(3)]}, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="Stage 's' has no rows"):
        plan_stage("s", {"a": []}, {"a": []}, batch_size=1, seed=0, epochs=1)
