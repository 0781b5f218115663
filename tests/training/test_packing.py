from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_lab.training.order import seeded
from sft_lab.training.packing import best_subset, look_ahead_for, pack

LENGTHS = st.lists(st.integers(1, 40), max_size=60)


@given(LENGTHS, st.integers(1, 12))
def test_every_row_is_in_one_bin_that_holds_it(num_tokens: list[int], look_ahead: int) -> None:
    bins = pack(num_tokens, 40, look_ahead)
    assert sorted(index for b in bins for index in b) == list(range(len(num_tokens)))
    assert all(sum(num_tokens[index] for index in b) <= 40 for b in bins)
    assert all(b == sorted(b) for b in bins)
    assert [b[0] for b in bins] == sorted(b[0] for b in bins)


@given(LENGTHS, st.integers(1, 12))
def test_no_row_moves_as_far_as_the_look_ahead(num_tokens: list[int], look_ahead: int) -> None:
    order = [index for b in pack(num_tokens, 40, look_ahead) for index in b]
    assert all(abs(place - index) < look_ahead for place, index in enumerate(order))


@given(st.lists(st.integers(1, 20), max_size=8), st.integers(0, 60))
def test_the_best_subset_is_the_best_of_all(lengths: list[int], room: int) -> None:
    subsets = [c for n in range(len(lengths) + 1) for c in combinations(range(len(lengths)), n)]
    sums = [sum(lengths[place] for place in subset) for subset in subsets]
    chosen = best_subset(lengths, room)
    assert tuple(chosen) in subsets
    assert sum(lengths[place] for place in chosen) == max(s for s in sums if s <= room)


def test_of_two_ways_to_fill_a_bin_the_earlier_rows_are_taken() -> None:
    # 5 + 5, where 5 + 3 + 2 of later rows would fill it as well.
    assert pack([5, 5, 3, 2], max_length=10, look_ahead=4) == [[0, 1], [2, 3]]
    assert pack([5, 3, 2, 5], max_length=10, look_ahead=4) == [[0, 1, 2], [3]]
    # The 4 that would fill the first bin is out of sight.
    assert pack([6, 3, 3, 3, 4], max_length=10, look_ahead=4) == [[0, 1], [2, 3, 4]]


def test_what_is_in_sight_is_far_enough_to_fill_and_near_enough_to_stay_spread() -> None:
    # Twenty rows a sequence: four sequences' worth, however small or large the pass.
    assert look_ahead_for([100] * 50, 2000) == look_ahead_for([100] * 9999, 2000) == 80
    # One row a sequence: an 80th of the pass, from 4 up to 64.
    passes = (300, 800, 5120, 9999)
    assert [look_ahead_for([1500] * n, 1500) for n in passes] == [4, 10, 64, 64]


@pytest.mark.parametrize("max_length", [1024, 2048])
def test_rows_of_many_lengths_leave_little_padding(max_length: int) -> None:
    chance = seeded("lengths")
    # About as long as GSM8K and ShareGPT: many short rows, and some that are ten times as long.
    num_tokens = [
        int(80 + 240 * chance.random()) if chance.random() < 0.9 else int(1024 * chance.random())
        for _ in range(4000)
    ]
    bins = pack(num_tokens, max_length, look_ahead_for(num_tokens, max_length))
    assert sum(num_tokens) / (len(bins) * max_length) > 0.99


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="A row of 11 tokens fits in no bin of 10"):
        pack([3, 11], max_length=10, look_ahead=2)
    with pytest.raises(ValueError, match="look_ahead must be 1 or more, got 0"):
        pack([3], max_length=10, look_ahead=0)
    assert pack([], max_length=10, look_ahead=1) == []
