from dataclasses import replace

from compared_runs import ENTRY, Boundaries, group, measurements, run

from sft_lab.analysis.abilities import abilities_in
from sft_lab.analysis.forgetting import (
    ChangedItem,
    change_of,
    changed_items,
    changes_of,
    drop_of,
    reference_of,
)
from sft_lab.runs.results import RunResult


def changed(of: RunResult) -> list[ChangedItem]:
    return list(changed_items(of, abilities_in(of)[0], measurements()))


def test_items_are_forgotten_and_gained_since_the_best_earlier_boundary() -> None:
    # Items: kept, forgotten, gained, lost in between and won back, wrong, ungraded at the end.
    boundaries: Boundaries = [
        [0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 1],
        [1, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 0, None],
    ]
    forgotten, gained = changed(run("a", boundaries))
    assert (forgotten.id, forgotten.kind) == ("i1", "forgotten")
    assert (forgotten.stage, forgotten.step) == ("s1", 10)
    assert (forgotten.prompt, forgotten.before, forgotten.after) == ("q i1", "i1 is 1", "i1 is 0")
    assert (gained.id, gained.kind, gained.stage) == ("i2", "gained", "s1")
    assert (gained.before, gained.after) == ("i2 is 0", "i2 is 1")


def test_ratings_and_unfinished_runs_have_no_forgotten_items() -> None:
    rated = run("a", [[1, 9], [0, 8]], entry=replace(ENTRY, scale=(1, 10)))
    assert changed(rated) == []
    assert changed(run("a", [[1, 1], [0, 0]], stages=3)) == []


def test_shares_of_samples_are_neither_right_nor_wrong() -> None:
    assert changed(run("a", [[1, 0.75], [0.5, 0]])) == []


def test_an_evaluation_within_a_stage_is_not_a_reference() -> None:
    found = run("a", [[0, 0], [1, 0], [1, 0]])
    within = replace(found.points[1], step=15, after=None)
    better = {key: replace(score, value=1.0) for key, score in within.scores.items()}
    points = (*found.points[:2], replace(within, scores=better), found.points[2])
    found = replace(found, points=points)
    reference = reference_of(found, abilities_in(found)[0])
    assert reference is not None
    assert (reference.step, reference.score.value) == (10, 0.5)


def test_retention_is_averaged_over_seeds_of_which_each_has_one() -> None:
    seeds = group("a", *([[0] * 10, [1] * 10, [1] * n + [0] * (10 - n)] for n in (7, 8)))
    (ability,) = seeds.abilities
    assert [changes_of(one, ability)["forgetting"] for one in seeds.runs.values()] == [
        1 - 0.7,
        1 - 0.8,
    ]
    mean = change_of(seeds, ability, "retention")
    assert mean is not None
    assert (mean.value, mean.n) == (0.75, 2)
    nothing_learnt = group("b", [[0] * 10, [1] * 10, [1] * 10], [[0] * 10] * 3)
    assert change_of(nothing_learnt, ability, "retention") is None


def test_a_group_drops_from_the_boundary_where_its_mean_is_highest() -> None:
    # The seeds alone were best after s2 and s1; their means are 0, 0.75 and 0.65.
    first = [[0] * 10, [1] * 5 + [0] * 5, [1] * 6 + [0] * 4, [0] * 10]
    second = [[0] * 10, [1] * 10, [1] * 7 + [0] * 3, [0] * 10]
    seeds = group("a", first, second)
    drop = drop_of("f", seeds, seeds.abilities[0], measurements())
    assert drop is not None
    assert drop.best.stage == "s1"
    assert drop.comparison.difference is not None
    assert drop.comparison.difference.value == -0.75
    alone = group("b", [[0, 1]])
    assert drop_of("f", alone, alone.abilities[0], measurements()) is None
