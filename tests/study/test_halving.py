from collections.abc import Sequence

import numpy as np
import pytest

from sft_lab.study.halving import Found, Retained, Trial, assess, search

VALUES = ["0", "1/256", "1/64", "1/16", "1/4", "1/2", "1"]


def all_values(conclusions: dict[str, Retained]) -> Found:
    found = search(VALUES, [0, 1], lambda value, seeds: conclusions[value])
    assert isinstance(found, Found)
    return found


@pytest.mark.parametrize("smallest", range(len(VALUES)))
def test_the_smallest_is_found_in_three_runs_of_seven(smallest: int) -> None:
    found = all_values({v: "kept" if i >= smallest else "not kept" for i, v in enumerate(VALUES)})
    assert found.value == VALUES[smallest]
    assert found.trials <= 3  # log2(7 + 1)


def test_if_no_value_keeps_none_is_returned() -> None:
    found = all_values(dict.fromkeys(VALUES, "not kept"))
    assert (found.value, found.trials) == (None, 3)


def test_the_middle_is_tried_first_and_seeds_are_added_while_it_is_inconclusive() -> None:
    known: dict[tuple[str, int], Retained] = {}

    def conclude(value: str, seeds: Sequence[int]) -> Retained | None:
        return known.get((value, len(seeds)))

    def step() -> Trial | Found:
        return search(["1/64", "1/16", "1/4"], [5, 7], conclude)

    assert step() == Trial("1/16", 5)
    known["1/16", 1] = "not shown"
    assert step() == Trial("1/16", 7)
    known["1/16", 2] = "not shown"  # inconclusive with all seeds: counts as not keeping
    assert step() == Trial("1/4", 5)
    known["1/4", 1] = "kept"
    assert step() == Found("1/4", {"1/16": "not shown", "1/4": "kept"}, trials=3, seeds=2)


def test_a_loss_must_be_shown_just_as_retention_must() -> None:
    best = [[1.0] * 100 + [0.0] * 100]  # 50 %
    same = [[1.0] * 98 + [0.0] * 102]
    gone = [[1.0] * 20 + [0.0] * 180]
    assert assess({"math": (best, same, range(200))}, {"math": 0.9}, 0.9, 1) == "kept"
    assert assess({"math": (best, gone, range(200))}, {"math": 0.9}, 0.9, 1) == "not kept"
    # 92 of 100 kept, 90 required: two items are not enough evidence.
    near = [[1.0] * 92 + [0.0] * 108]
    assert assess({"math": (best, near, range(200))}, {"math": 0.9}, 0.9, 1) == "not shown"


def test_every_ability_must_be_kept() -> None:
    items = range(50)
    whole = [[1.0] * 50], [[1.0] * 50], items
    gone = [[1.0] * 50], [[0.0] * 50], items
    limits = {"math": 0.9, "code": 0.9}
    assert assess({"math": whole, "code": whole}, limits, 0.9, 1) == "kept"
    assert assess({"math": whole, "code": gone}, limits, 0.9, 1) == "not kept"


def test_with_several_seeds_one_alone_is_inconclusive() -> None:
    items = range(200)
    same, gone = ([[1.0] * 200], [[1.0] * 200], items), ([[1.0] * 200], [[0.0] * 200], items)
    for marks in (same, gone):
        assert assess({"math": marks}, {"math": 0.9}, 0.9, 3) == "not shown"
    two = {"math": (same[0] * 2, same[1] * 2, items)}
    assert assess(two, {"math": 0.9}, 0.9, 3) == "kept"


def simulated(retained: float, seed_sd: float, chance: np.random.Generator) -> list[np.ndarray]:
    """Simulate 3 seeds of 200 items: 95 % right at best, a scattering share of these at the end."""
    runs = []
    for _ in range(3):
        best = chance.random(200) < 0.95
        kept = chance.random(200) < np.clip(retained + chance.normal(0, seed_sd), 0, 1)
        runs.append(np.stack([best, best & kept]).astype(float))
    return runs


def searched(runs: dict[str, list[np.ndarray]], limit: float) -> Found:
    """Search among values as a study does, with these runs as their results."""
    tried: set[tuple[str, int]] = set()

    def conclude(value: str, seeds: Sequence[int]) -> Retained | None:
        if any((value, seed) not in tried for seed in seeds):
            return None
        best, now = ([runs[value][seed][at].tolist() for seed in seeds] for at in (0, 1))
        return assess({"math": (best, now, range(len(now[0])))}, {"math": limit}, 0.9, num_seeds=3)

    while isinstance(step := search(list(runs), [0, 1, 2], conclude), Trial):
        tried.add((step.value, step.seed))
    return step


# Of 5,000 such searches, 0.4, 2.1, 7.9 and 1.8 % ended in "kept". Without splitting the error
# probability over the tests, and with one seed alone sufficient, it was 19, 31, 41 and 21 %.
@pytest.mark.parametrize(
    ("retained", "seed_sd"), [(0.85, 0.0), (0.85, 0.03), (0.85, 0.1), (0.80, 0.1)]
)
def test_the_error_rate_holds_over_seeds(retained: float, seed_sd: float) -> None:
    chance = np.random.default_rng(0)
    found = [
        searched({"k": simulated(retained, seed_sd, chance)}, 0.85).retained["k"]
        for _ in range(1000)
    ]
    assert found.count("kept") <= 100  # at 90 % confidence
    if retained == 0.85:
        assert found.count("not kept") <= 100


def test_large_effects_are_found_in_far_fewer_runs_than_the_whole_grid() -> None:
    chance = np.random.default_rng(0)
    retained = [0.1, 0.3, 0.5, 0.7, 0.98, 0.99, 1.0]
    found = []
    for _ in range(50):
        runs = {v: simulated(r, 0.02, chance) for v, r in zip(VALUES, retained, strict=True)}
        found.append(searched(runs, 0.9))
    assert [result.value for result in found].count("1/4") >= 45
    assert np.mean([result.trials for result in found]) <= 8  # of 21
