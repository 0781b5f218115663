"""The results of a run: the scores of every evaluation, and answers item by item."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.evaluation.item import Part
from sft_lab.runs.evaluations import EVALUATIONS, Point, Tracked, read_points, strict_key
from sft_lab.runs.record import BenchmarkRecord, RunRecord, read_record
from sft_lab.runs.store import RunStore


@dataclass(frozen=True)
class ItemAnswer:
    """One answer to one item.

    Attributes:
        id: What was asked: an item, or one turn of it.
        item: The item, the same for all its turns and samples.
        marks: By name, None if it could not be graded; a list if the item has several parts.
        completion: The answer.
        prompt: The question.
        cluster: Items of one cluster are not independent; by default the item itself.
        part: The part of the items that it belongs to.
    """

    id: str
    item: str
    marks: Mapping[str, bool | float | list[bool] | None]
    completion: str
    prompt: str
    cluster: str = ""
    part: Part = "all"


@dataclass(frozen=True)
class RunResult:
    """One run of ``fit``.

    Attributes:
        run_id: The MLflow run.
        name: Its name.
        strategy: Its strategy, the name of its config file.
        status: MLflow's.
        seed: ``seed_everything``.
        base: The base model.
        settings: Its parameters, by dotted key, as text.
        record: Its sources, stages and benchmarks.
        points: Its evaluations in order of steps.
        final: Its last values of form, answer loss, forgetting, retention and average, by metric
            key.
    """

    run_id: str
    name: str
    strategy: str
    status: str
    seed: int
    base: str
    settings: Mapping[str, str]
    record: RunRecord
    points: tuple[Point, ...]
    final: Mapping[str, float]

    @property
    def stages(self) -> dict[str, int]:
        """Optimizer steps of every stage, by name, in order."""
        return {name: stage.steps for name, stage in self.record.stages.items()}

    @property
    def benchmarks(self) -> Mapping[str, BenchmarkRecord]:
        """The benchmarks as they were measured, by name."""
        return self.record.benchmarks

    @property
    def score_keys(self) -> dict[str, str]:
        """The metric key of every benchmark's main score: a primary one, or else the first."""
        first = {name: f"{name}/{b.score_names[0]}" for name, b in self.benchmarks.items()}
        return first | {key.partition("/")[0]: key for key in self.record.abilities.values()}

    @property
    def abilities(self) -> dict[str, Tracked]:
        """The abilities whose forgetting is followed, by name."""
        found = {}
        for name, key in self.record.abilities.items():
            benchmark = self.benchmarks[key.partition("/")[0]]
            found[name] = Tracked(
                key,
                self.record.trained_at(benchmark.source),
                benchmark.chance,
                strict_key(key, benchmark.strict_score),
            )
        return found

    @property
    def boundaries(self) -> tuple[Point, ...]:
        """The evaluations before training and at every stage's end that the run has reached."""
        return tuple(point for point in self.points if point.is_boundary)

    @property
    def last(self) -> Point | None:
        """The evaluation at the end of the last stage; None if the run has not reached it."""
        total = sum(self.stages.values())
        return next((point for point in self.points if point.step == total), None)


def read_result(store: RunStore, run: Any, points: Sequence[Point] | None = None) -> RunResult:
    """Return the results of a run of ``fit``.

    Args:
        store: The store that holds it.
        run: Its MLflow run.
        points: Its evaluations where they are known; by default they are read.

    Raises:
        RequestError: If it is a run of another command, was stopped before its record was written,
            or another version of the lab wrote it.
    """
    run_id, tags, metrics = run.info.run_id, run.data.tags, run.data.metrics
    if tags.get("command") != "fit":
        raise RequestError(
            f"RUN {run_id[:8]} is one of `{tags.get('command')}`, which trains no stage; "
            "name runs of `fit`."
        )
    final = (
        *("form/", "answer_loss/", "form_forgetting/"),
        *("retention/", "forgetting/", "backward_transfer/", "average/"),
    )
    if points is None and run.info.status == "FINISHED":  # one that was stopped may lack the last
        store.check_artifacts(run_id, EVALUATIONS)
    return RunResult(
        run_id=run_id,
        name=run.info.run_name,
        strategy=tags.get("strategy", ""),
        status=run.info.status,
        seed=int(run.data.params.get("seed_everything", 0)),
        base=tags.get("base", ""),
        settings=dict(run.data.params),
        record=read_record(store, run_id),
        points=read_points(store, run_id) if points is None else tuple(points),
        final={key: value for key, value in sorted(metrics.items()) if key.startswith(final)},
    )


REPORTED: tuple[Part, ...] = ("report", "all")
"""The parts of the items that reported scores come from."""

SELECTION: tuple[Part, ...] = ("selection",)
"""The part of the items that decisions are based on."""


def read_answers(
    store: RunStore,
    run_id: str,
    benchmark: str,
    step: int,
    parts: Collection[Part] = REPORTED,
) -> list[ItemAnswer]:
    """Return a benchmark's answers of one evaluation, in the order of its items; samples follow.

    Args:
        store: The store that holds the run.
        run_id: The run.
        benchmark: The benchmark.
        step: Optimizer steps taken at the evaluation.
        parts: The parts of the items; by default those of reported scores.

    Raises:
        RequestError: If the run has no such evaluation.
    """
    path = f"answers/step_{step:06d}/{benchmark}.json"
    return store.artifact(run_id, path, lambda text: _item_answers(json.loads(text), parts))


def _item_answers(table: Mapping[str, Any], parts: Collection[Part]) -> list[ItemAnswer]:
    columns = table["columns"]
    ids = ("id", "item", "cluster", "split")
    others = {*ids, "reason", "completion", "expected", "reasoning", "prompt"}
    names = [name for name in columns if name not in others]
    rows = (dict(zip(columns, row, strict=True)) for row in table["data"])
    return [
        ItemAnswer(
            id=row["id"],
            item=row["item"],
            marks={name: row[name] for name in names},
            completion=row["completion"],
            prompt=row["prompt"],
            cluster=str(row.get("cluster", row["item"])),
            part=row["split"],
        )
        for row in rows
        if row["split"] in parts
    ]
