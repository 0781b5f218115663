from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from sft_lab.errors import RequestError
from sft_lab.training.order import (
    DataOrder,
    EvenOrder,
    MixturePass,
    OrderName,
    RowRef,
    seeded,
)
from sft_lab.training.plan import StagePlan, plan_stage

LENGTHS = {"a": [3] * 5}


def spread_evenly(
    rows: Mapping[str, Sequence[int]], seed: int, stage_name: str, pass_index: int
) -> list[RowRef]:
    return EvenOrder().refs(MixturePass(rows, seed, stage_name, pass_index, {}, batch_size=8))


def window_sizes(plan: StagePlan) -> list[list[int]]:
    """Training sequences of every window of every pass."""
    return [[len(window) for window in windows] for windows in plan.passes]


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
    plan = plan_stage("s", {"a": range(5)}, LENGTHS, batch_size=2, seed=0, epochs=2)
    assert window_sizes(plan) == [[2, 2, 1], [2, 2, 1]]  # the last window is what is left
    assert plan.num_steps == 6
    assert {len(refs) for window in plan.windows for refs in window} == {1}  # a row a sequence
    indices = [ref.index for ref in plan.rows()]
    first, second = indices[:5], indices[5:]
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second


def test_max_steps_end_in_the_middle_of_a_pass() -> None:
    plan = plan_stage("s", {"a": range(5)}, LENGTHS, batch_size=2, seed=0, max_steps=4)
    assert window_sizes(plan) == [[2, 2, 1], [2]]
    whole = plan_stage("s", {"a": range(5)}, LENGTHS, batch_size=2, seed=0, max_steps=3)
    assert whole.passes == plan.passes[:1]  # no empty pass after it


@pytest.mark.parametrize(("max_tokens", "steps"), [(1, 1), (6, 1), (7, 2), (12, 2), (18, 4)])
def test_max_tokens_end_with_the_step_that_reaches_them(max_tokens: int, steps: int) -> None:
    # Steps of 6, 6, 3 and again 6 tokens.
    plan = plan_stage("s", {"a": range(5)}, LENGTHS, batch_size=2, seed=0, max_tokens=max_tokens)
    assert plan.num_steps == steps


def test_the_first_limit_reached_ends_a_stage() -> None:
    plan = plan_stage("s", {"a": range(5)}, LENGTHS, batch_size=2, seed=0, epochs=1, max_steps=99)
    assert plan.num_steps == 3


def test_counts_sum_over_passes_and_repeated_rows() -> None:
    num_tokens, num_target_tokens = {"a": [10, 20], "b": [7]}, {"a": [4, 5], "b": [1]}
    plan = plan_stage(
        "s",
        {"a": [0, 1, 0], "b": [0], "c": []},
        {**num_tokens, "c": []},
        batch_size=3,
        seed=0,
        epochs=2,
    )
    assert plan.count(num_tokens, num_target_tokens) == {
        "a": {"samples": 6, "tokens": 80, "target_tokens": 26},
        "b": {"samples": 2, "tokens": 14, "target_tokens": 2},
    }
    by_window = plan.count_windows(num_tokens, num_target_tokens)
    assert len(by_window) == plan.num_steps == 4  # of three rows and one, twice
    samples = [sum(count["samples"] for count in counts.values()) for counts in by_window]
    assert samples == [3, 1, 3, 1]
    assert sum(counts["a"]["tokens"] for counts in by_window if "a" in counts) == 80


MIXTURE = {"general": 3000, "math": 187, "code": 60}


def mixture_lengths() -> dict[str, list[int]]:
    """Tokens of rows: those of general up to 1000, those of math and code up to 300."""
    most = {"general": 1000, "math": 300, "code": 300}
    chance = seeded("lengths")
    return {
        name: [50 + int((most[name] - 50) * chance.random()) for _ in range(n)]
        for name, n in MIXTURE.items()
    }


def test_packed_windows_hold_full_sequences() -> None:
    num_tokens = mixture_lengths()
    rows = {name: range(n) for name, n in MIXTURE.items()}
    plan = plan_stage("s", rows, num_tokens, batch_size=8, seed=0, packed_length=2048, epochs=1)
    assert Counter(ref.source for ref in plan.rows()) == MIXTURE
    assert set(window_sizes(plan)[0][:-1]) == {8}
    sizes = [
        sum(num_tokens[ref.source][ref.index] for ref in refs)
        for window in plan.windows
        for refs in window
    ]
    assert max(sizes) <= 2048
    assert sum(sizes) / (len(sizes) * 2048) > 0.97
    again = plan_stage("s", rows, num_tokens, batch_size=8, seed=0, packed_length=2048, epochs=1)
    assert again == plan


def test_packing_leaves_the_whole_mixture_in_every_window() -> None:
    rows = {name: range(n) for name, n in MIXTURE.items()}
    plan = plan_stage(
        "s", rows, mixture_lengths(), batch_size=8, seed=0, packed_length=2048, epochs=1
    )
    order, total = list(plan.rows()), sum(MIXTURE.values())
    assert order != spread_evenly(rows, 0, "s", 0)
    size = total // 20
    for start in range(0, total - size + 1, 7):
        window = Counter(ref.source for ref in order[start : start + size])
        for name, n in MIXTURE.items():
            assert abs(window[name] - n * size / total) <= 4  # as without packing


def test_a_packed_stage_ends_by_the_tokens_of_its_rows() -> None:
    # Two rows of 4 tokens in each sequence of 10: 16 tokens a step, however much room is left.
    lengths = {"a": [4] * 40}
    plan = plan_stage(
        "s", {"a": range(40)}, lengths, batch_size=2, seed=0, packed_length=10, max_tokens=33
    )
    assert [len(refs) for window in plan.windows for refs in window] == [2] * 6
    assert plan.num_steps == 3


def test_a_stage_without_end_or_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="Stage 's' has no end"):
        plan_stage("s", {"a": [0]}, {"a": [3]}, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="Stage 's' has no rows"):
        plan_stage("s", {"a": []}, {"a": []}, batch_size=1, seed=0, epochs=1)


@pytest.mark.parametrize("order", ["even", "random", "length"])
def test_every_order_trains_every_row_once(order: OrderName) -> None:
    num_tokens = {"math": [3] * 10, "code": [9] * 7}
    rows = {"math": range(10), "code": range(7)}
    plan = plan_stage("s", rows, num_tokens, batch_size=4, seed=0, order=order, epochs=2)
    for windows in plan.passes:
        assert [len(window) for window in windows] == [4, 4, 4, 4, 1]
        trained = Counter(ref for window in windows for refs in window for ref in refs)
        assert trained == Counter(RowRef(name, i) for name, n in rows.items() for i in n)
    assert plan.passes[0] != plan.passes[1]


def test_batches_of_similar_length_gather_the_rows_of_a_source() -> None:
    num_tokens = {"math": [3] * 8, "code": [9] * 8}
    rows = {"math": range(8), "code": range(8)}
    plan = plan_stage("s", rows, num_tokens, batch_size=4, seed=0, order="length", epochs=1)
    for window in plan.windows:
        assert len({ref.source for refs in window for ref in refs}) == 1


def test_an_order_that_loses_rows_is_refused() -> None:
    class Half(DataOrder):
        def refs(self, one_pass: MixturePass) -> list[RowRef]:
            return EvenOrder().refs(one_pass)[::2]

    with pytest.raises(RequestError, match=r"data.order: Half must return each of the 5 rows"):
        plan_stage("s", {"a": range(5)}, LENGTHS, batch_size=2, seed=0, order=Half(), epochs=1)
