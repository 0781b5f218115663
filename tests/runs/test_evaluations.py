import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_lab import CONFIGS, EVALUATED_STEPS, TINY, FinishedRun, Lab

from sft_lab.errors import RequestError
from sft_lab.metrics.score import Score, accuracy
from sft_lab.runs.evaluations import Point, Tracked, ability_metrics, evaluated_steps, read_points
from sft_lab.runs.results import RunResult, read_answers, read_result
from sft_lab.runs.stages import find_stage
from sft_lab.runs.store import RunStore


def point(step: int, after: str | None = None, *, math: float, code: float | None) -> Point:
    scores = {"gsm8k/flexible": Score(math, math / 2, 1.0, 8)}
    if code is not None:
        scores["mbpp/pass_at_1"] = Score(code, code / 2, 1.0, 4)
    return Point(step, after, scores, losses={"val_loss/math": 1.5}, partial={})


ABILITIES = {"math": Tracked("gsm8k/flexible", 5, 0.0), "code": Tracked("mbpp/pass_at_1", 9, 0.0)}
LOSS_OF_THE_LEARNED = {"forgetting", "form_forgetting", "retention", "backward_transfer"}
POINTS = [
    point(0, math=0.0, code=0.25),
    point(5, "first", math=0.75, code=0.25),
    point(9, "second", math=0.5, code=0.75),
]


def test_an_evaluation_is_read_as_it_was_written() -> None:
    score = Score(0.5, 0.2, 0.8, 4)
    losses = {"val_loss/math": 1.0}
    written = Point(4, None, {"a/b": score}, losses, {"a": 4}, {"math": score})
    assert Point.from_dict(json.loads(json.dumps(written.to_dict())), "run 1f") == written
    with pytest.raises(RequestError, match="run 1f: its evaluations were written by another"):
        Point.from_dict({**written.to_dict(), "schema": 1}, "run 1f")


def test_metrics_are_named_by_ability() -> None:
    assert ability_metrics(POINTS, ABILITIES) == {
        "ability/math": 0.5,
        "ability/code": 0.75,
        "average/score": 0.625,
        "change_from_base/math": 0.5,
        "forgetting/math": 0.25,
        "retention/math": pytest.approx(2 / 3),
        "backward_transfer/math": -0.25,
        "change_from_base/code": 0.5,  # its own stage has just ended: it has lost nothing since
    }


def test_forgetting_of_form_is_that_of_the_strict_score() -> None:
    def strict(step: int, after: str | None, value: float) -> Point:
        found = point(step, after, math=0.75, code=None)
        score = Score(value, value / 2, 1.0, 8)
        return replace(found, scores={**found.scores, "gsm8k/strict": score})

    points = [strict(0, None, 0.0), strict(5, "first", 0.5), strict(9, "second", 0.125)]
    tracked = Tracked("gsm8k/flexible", 5, 0.0, "gsm8k/strict")
    found = tracked.changes(points)
    assert (found["forgetting"], found["form_forgetting"]) == (0.0, 0.375)
    # None before its own stage has ended, without one, and where it never rose above chance.
    assert "form_forgetting" not in tracked.changes(points[:1])
    assert "form_forgetting" not in replace(tracked, trained_at=None).changes(points)
    assert "form_forgetting" not in replace(tracked, chance=0.5).changes(points)


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


def test_a_run_within_a_budget_that_forgot_nothing_retains_everything() -> None:
    """Measure 50 of 200 items between boundaries, of runs whose answers never change."""
    dice = random.Random(0)
    fell = fell_by_any = 0
    for _ in range(200):
        marks = [dice.random() < 0.3 for _ in range(200)]
        whole, part = accuracy(marks), accuracy(marks[:50])
        points = [
            Point(step, None if step % 4 else "s", {"gsm8k/flexible": part if step % 4 else whole})
            for step in range(9)
        ]
        points = [replace(p, partial={"gsm8k": 50}) if p.step % 4 else p for p in points]
        tracked = {"math": Tracked("gsm8k/flexible", 4, 0.0)}
        history = [ability_metrics(points[: n + 1], tracked) for n in range(9)]
        kept = {n: found.get("retention/math") for n, found in enumerate(history)}
        assert {n for n, value in kept.items() if value is not None} == {8}
        fell += kept[8] < 0.9
        fell_by_any += whole.value / max(whole.value, part.value) < 0.9
    assert fell == 0
    assert fell_by_any > 40  # if evaluations on a part of the items were a reference


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


FORMED = '''
from sft_lab.evaluation.benchmark import Verdict
from scripted import Scripted


class Formed(Scripted):
    """Has 1, 3, 4, 0 and 2 of 4 answers in the asked form; right ones first."""

    score_names = ("accuracy", "strict")
    strict_score = "strict"
    form_mark = "form"
    formed = (1, 3, 4, 0, 2)

    def grade(self, items, completions):
        formed = self.formed[self.evaluations % 5]
        right = [v.marks["accuracy"] for v in super().grade(items, completions)]
        return [
            Verdict({"accuracy": r, "form": n < formed, "strict": r and n < formed}, "")
            for n, r in enumerate(right)
        ]

    def reference_answer(self, item):
        return item.row["answer"]


class NeverLearned(Formed):
    """Is never above chance."""

    chance = 0.9
'''


LATER = """
evaluation:
  benchmarks:
    later:
      class_path: {benchmark}
      init_args: {{path: world://data/world_general.jsonl, source: general, max_new_tokens: 2}}
"""


def scripted(lab: Lab, benchmark: str) -> RunResult:
    """Return the run of the tiny config in which a class of the lab's folder measures both."""
    config = TINY.format(configs=CONFIGS)
    world_math = "sft_lab.evaluation.benchmarks.world.WorldMath"
    assert world_math in config
    lab.write("tiny.yaml", config.replace(world_math, benchmark))
    lab.write("later.yaml", LATER.format(benchmark=benchmark))
    lab.write("formed.py", FORMED)
    outcome = lab.fit("--config=later.yaml")
    assert outcome.code == 0, outcome.err
    return read_result(lab.store, lab.run)


def test_a_result_says_what_the_run_has_logged(lab: Lab) -> None:
    """0, 2, 3, 1 and 2 of 4 items are right at steps 0, 4, 5, 8 and 12; math is trained to 5."""
    result = scripted(lab, "formed.Formed")
    scores = dict(zip(EVALUATED_STEPS, [0, 0.5, 0.75, 0.25, 0.5], strict=True))
    assert lab.points("ability/math") == lab.points("average/score") == scores
    assert lab.points("forgetting/math") == {8: 0.5, 12: 0.25}
    assert lab.points("retention/math") == {8: pytest.approx(1 / 3), 12: pytest.approx(2 / 3)}
    assert lab.points("backward_transfer/math") == {8: -0.5, 12: -0.25}
    assert lab.points("change_from_base/math") == {4: 0.5, 5: 0.75, 8: 0.25, 12: 0.5}
    for number, found in enumerate(result.points, start=1):
        computed = ability_metrics(result.points[:number], result.abilities)
        assert computed == {key: lab.points(key)[found.step] for key in computed}
    # The strict score is 0, 2, 3, 0 and 2 of 4: at step 8 an answer is right, and none in form.
    assert lab.points("form/math") == dict(
        zip(EVALUATED_STEPS, [0.25, 0.75, 1.0, 0.0, 0.5], strict=True)
    )
    assert lab.points("form_forgetting/math") == {8: 0.75, 12: 0.25}
    # The same scores, of what is learned to step 12: forgetting, retention and the like have none.
    assert lab.points("change_from_base/general") == lab.points("change_from_base/math")
    assert not {
        key
        for key in lab.run.data.metrics
        if key.endswith("/general") and key.partition("/")[0] in LOSS_OF_THE_LEARNED
    }
    losses = lab.points("answer_loss/math")
    assert list(losses) == EVALUATED_STEPS
    assert losses[5] < losses[0]  # trained on rows of the same kind
    assert result.final["form_forgetting/math"] == 0.25
    assert result.benchmarks["world_math"].references == 4


def test_what_was_never_above_chance_has_logged_no_forgetting(lab: Lab) -> None:
    scripted(lab, "formed.NeverLearned")
    changes = {
        key.partition("/")[0] for key in lab.run.data.metrics if key.endswith(("/math", "/general"))
    }
    assert not changes & LOSS_OF_THE_LEARNED
    assert {"ability", "form", "change_from_base"} <= changes


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> tuple[RunStore, Any, Path]:
    """A copy of the store of the finished run, the run, and the folder of its artifacts."""
    shutil.copytree(finished.lab.folder / "mlruns", tmp_path / "mlruns")
    store = RunStore(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (run,) = store.runs()
    return store, run, tmp_path / f"mlruns/artifacts/{run.info.run_id}/artifacts"


def test_a_missing_evaluation_of_a_finished_run_is_noticed(
    copied: tuple[RunStore, Any, Path],
) -> None:
    store, run, folder = copied
    assert [p.step for p in read_result(store, run).points] == EVALUATED_STEPS
    (folder / "evaluations/step_000004.json").unlink()
    with pytest.raises(RequestError, match=r"step_000004\.json is gone, or the run was stopped"):
        read_result(store, run)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("record.json", b"{"),
        ("record.json", b"null"),
        ("record.json", b"\xff"),
        ("evaluations/step_000004.json", b"[]"),
        ("evaluations/step_000004.json", b'{"schema": 1'),
        ("evaluations/step_000004.json", b""),
        ("answers/step_000004/scripted.json", b'{"columns": []}'),
        ("answers/step_000004/scripted.json", b"[" * 100_000),
        ("config.yaml", b"a: ["),
        ("config.yaml", b"data: {stages: [1]}"),
    ],
)
def test_a_damaged_artifact_without_a_checksum_is_named(
    copied: tuple[RunStore, Any, Path], path: str, content: bytes
) -> None:
    store, run, folder = copied
    (folder.parent / "sha256.txt").unlink()  # as on a server, which has none
    (folder / path).write_bytes(content)
    with pytest.raises(RequestError, match=rf"run {run.info.run_id[:8]}: {path} is damaged: "):
        _read_all(store, run)


def _read_all(store: RunStore, run: Any) -> None:
    read_result(store, run)
    read_answers(store, run.info.run_id, "scripted", 4)
    find_stage(store, f"{run.info.run_name}@first")
