from dataclasses import replace

import pytest
from tiny_lab import EVALUATED_STEPS, FinishedRun

from sft_lab.analysis.frames import answers_frame, curves_frame, scores_frame
from sft_lab.runs.results import read_result


def test_a_finished_run_as_frames(finished: FinishedRun) -> None:
    lab = finished.lab
    result = read_result(lab.store, lab.run)

    scores = scores_frame(result)
    scripted = scores[(scores.benchmark == "scripted") & (scores.score == "accuracy")]
    assert scripted.value.tolist() == [0, 0.5, 0.75, 0.25, 0.5]
    assert scripted.step.tolist() == EVALUATED_STEPS
    assert scripted.after.dropna().tolist() == ["base", "first", "second"]
    assert set(scripted.n) == {4}
    assert (scores.low <= scores.value).all()

    answers = answers_frame(lab.store, result, step=5)
    assert answers.groupby("benchmark").size().to_dict() == {"scripted": 4, "world_math": 4}
    found = answers[answers.benchmark == "scripted"]
    assert found.accuracy.astype(float).mean() == 0.75
    assert found.item.tolist() == [f"math/{n}" for n in range(4)]
    assert found.prompt.iloc[0] == "math: what is 0 plus 1?"
    assert set(answers_frame(lab.store, result).step) == set(EVALUATED_STEPS)

    curves = curves_frame(lab.store, result)
    lr = curves[curves.metric == "lr"]
    assert dict(zip(lr.step, lr.value, strict=True)) == pytest.approx(lab.points("lr"))
    assert curves.step.dtype == int


def test_a_run_without_evaluations_has_the_columns(finished: FinishedRun) -> None:
    result = replace(read_result(finished.lab.store, finished.lab.run), points=())
    assert scores_frame(result).empty
    assert {"step", "value", "low", "high"} <= {*scores_frame(result).columns}
    assert list(answers_frame(finished.lab.store, result).columns) == [
        "step",
        "benchmark",
        "item",
        "id",
        "sample",
        "prompt",
        "completion",
        "split",
    ]
