import json

import pytest
from tiny_lab import CONFIGS, EVALUATED_STEPS, TINY, FinishedRun, Lab

from sft_lab.errors import RequestError
from sft_lab.metrics.score import Score
from sft_lab.runs.evaluations import Point, Tracked, ability_metrics, evaluated_steps, read_points
from sft_lab.runs.results import read_result


def point(step: int, after: str | None = None, *, math: float, code: float | None) -> Point:
    scores = {"gsm8k/flexible": Score(math, math / 2, 1.0, 8)}
    if code is not None:
        scores["mbpp/pass_at_1"] = Score(code, code / 2, 1.0, 4)
    return Point(step, after, scores, losses={"val_loss/math": 1.5}, partial={})


ABILITIES = {"math": Tracked("gsm8k/flexible", 5, 0.0), "code": Tracked("mbpp/pass_at_1", 9, 0.0)}
POINTS = [
    point(0, math=0.0, code=0.25),
    point(5, "first", math=0.75, code=0.25),
    point(9, "second", math=0.5, code=0.75),
]


def test_an_evaluation_is_read_as_it_was_written() -> None:
    written = Point(4, None, {"a/b": Score(0.5, 0.2, 0.8, 4)}, {"val_loss/math": 1.0}, {"a": 4})
    assert Point.from_dict(json.loads(json.dumps(written.to_dict())), "run 1f") == written
    with pytest.raises(RequestError, match="run 1f: its evaluations were written by another"):
        Point.from_dict({**written.to_dict(), "schema": 2}, "run 1f")


def test_metrics_are_named_by_ability() -> None:
    assert ability_metrics(POINTS, ABILITIES) == {
        "ability/math": 0.5,
        "ability/code": 0.75,
        "average/score": 0.625,
        "change_from_base/math": 0.5,
        "forgetting/math": 0.25,
        "retention/math": pytest.approx(2 / 3),
        "backward_transfer/math": -0.25,
        "change_from_base/code": 0.5,
        "forgetting/code": 0.0,  # at the end of its own stage: 0.25 before, and a base above chance
        "retention/code": 3.0,
    }


def test_an_average_over_fewer_abilities_does_not_compare() -> None:
    metrics = ability_metrics([*POINTS, point(12, math=0.5, code=None)], ABILITIES)
    assert metrics["ability/math"] == 0.5
    assert not {"average/score", "ability/code", "change_from_base/code"} & set(metrics)


def test_a_partial_evaluation_has_a_score_and_no_change() -> None:
    part = Point(7, None, POINTS[2].scores, {}, partial={"gsm8k": 3})
    metrics = ability_metrics([*POINTS[:2], part], ABILITIES)
    assert metrics["ability/math"] == 0.5
    assert "change_from_base/code" in metrics  # all of its items were measured
    assert not any(key.endswith("/math") for key in metrics if key != "ability/math")


def test_every_evaluation_of_a_run_has_a_file(finished: FinishedRun) -> None:
    lab, run_id = finished.lab, finished.lab.run.info.run_id
    assert evaluated_steps(lab.store, run_id) == [0, 4, 5, 8, 12]
    points = read_points(lab.store, run_id)
    assert [p.after for p in points] == [None, None, "first", None, "second"]
    for found in points:
        for key, score in found.scores.items():
            assert lab.points(key)[found.step] == score.value
            assert score.low <= score.value <= score.high
        assert {key: lab.points(key)[found.step] for key in found.losses} == found.losses
    assert not any(key.endswith(("_low", "_high", "_n")) for key in lab.run.data.metrics)


def test_a_result_says_what_the_run_has_logged(lab: Lab) -> None:
    """0, 2, 3, 1 and 2 of 4 items are right at steps 0, 4, 5, 8 and 12; math is trained to 5."""
    config = TINY.format(configs=CONFIGS)
    world_math = "sft_lab.evaluation.benchmarks.world.WorldMath"
    assert world_math in config
    lab.write("tiny.yaml", config.replace(world_math, "scripted.Scripted"))
    outcome = lab.fit()
    assert outcome.code == 0, outcome.err
    result = read_result(lab.store, lab.run)
    scores = dict(zip(EVALUATED_STEPS, [0, 0.5, 0.75, 0.25, 0.5], strict=True))
    assert lab.points("ability/math") == lab.points("average/score") == scores
    assert lab.points("forgetting/math") == {8: 0.5, 12: 0.25}
    assert lab.points("retention/math") == {8: pytest.approx(1 / 3), 12: pytest.approx(2 / 3)}
    assert lab.points("backward_transfer/math") == {8: -0.5, 12: -0.25}
    assert lab.points("change_from_base/math") == {4: 0.5, 5: 0.75, 8: 0.25, 12: 0.5}
    for number, found in enumerate(result.points, start=1):
        computed = ability_metrics(result.points[:number], result.abilities)
        assert computed == {key: lab.points(key)[found.step] for key in computed}
