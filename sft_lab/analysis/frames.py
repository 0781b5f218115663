"""A run as pandas data frames, one row per observation, for notebooks."""

from typing import Any

import pandas as pd

from sft_lab.errors import RequestError
from sft_lab.runs.results import REPORTED, SELECTION, RunResult, read_answers
from sft_lab.runs.store import RunStore


def scores_frame(result: RunResult) -> pd.DataFrame:
    """Return every score of every evaluation of a run.

    Columns:
        step: Optimizer steps taken at the evaluation.
        after: The stage that ended there; ``base`` before training, missing within a stage.
        benchmark: The benchmark.
        score: Name of the score within its benchmark; ``benchmark/score`` is its metric key.
        value: The score, in [0, 1]; a rating in its own scale, 1 to 10 for MT-Bench.
        low: Lower end of its 95 % interval, in the same unit.
        high: Upper end.
        n: Values that it is the mean of.
        split: The items it comes from: ``report`` or ``selection``, or ``all`` without a split.

    Args:
        result: The run, as ``read_result`` returns it.
    """
    rows = [
        {
            "step": point.step,
            "after": "base" if point.step == 0 else point.after,
            "benchmark": key.partition("/")[0],
            "score": key.partition("/")[2],
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "n": score.n,
            "split": part,
        }
        for point in result.points
        for part, scores in ((point.reported, point.scores), ("selection", point.selection))
        for key, score in scores.items()
    ]
    return pd.DataFrame(
        rows, columns=["step", "after", "benchmark", "score", "value", "low", "high", "n", "split"]
    )


def answers_frame(store: RunStore, result: RunResult, step: int | None = None) -> pd.DataFrame:
    """Return every answer of a run's evaluations.

    Columns:
        step: Optimizer steps taken at the evaluation.
        benchmark: The benchmark.
        item: The item.
        id: What was asked: the item, or one turn of it.
        sample: Number of the answer among those to its id, from 0.
        prompt: The question.
        completion: The answer.
        split: The items it belongs to: ``report`` or ``selection``, or ``all`` without a split.
        Further columns are the marks of the benchmarks, by name: True or False, or a number;
        missing if the benchmark has no such mark or the answer could not be graded.

    Args:
        store: The store that holds the run.
        result: The run, as ``read_result`` returns it.
        step: The evaluation to read; all of them by default.

    Raises:
        RequestError: If there was no evaluation at that step, or its answers are unavailable.
    """
    steps = [point.step for point in result.points]
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps))
        raise RequestError(f"step {step}: the run was evaluated at steps {known}.")
    rows: list[dict[str, Any]] = []
    for point in result.points:
        if step not in (None, point.step):
            continue
        measured = (*point.scores, *point.selection)
        for benchmark in dict.fromkeys(key.partition("/")[0] for key in measured):
            seen: dict[str, int] = {}
            every = REPORTED + SELECTION
            for answer in read_answers(store, result.run_id, benchmark, point.step, every):
                sample = seen.get(answer.id, 0)
                seen[answer.id] = sample + 1
                place = {"step": point.step, "benchmark": benchmark, "item": answer.item}
                texts = {"prompt": answer.prompt, "completion": answer.completion}
                texts["split"] = answer.part
                rows.append({**place, "id": answer.id, "sample": sample, **texts, **answer.marks})
    columns = ["step", "benchmark", "item", "id", "sample", "prompt", "completion", "split"]
    marks = dict.fromkeys(name for row in rows for name in row if name not in columns)
    return pd.DataFrame(rows, columns=[*columns, *marks])


def curves_frame(store: RunStore, result: RunResult) -> pd.DataFrame:
    """Return every point of every metric that a run logged, ordered by metric and step.

    Columns:
        metric: Metric key, such as ``train_loss/math`` (nats per target token), ``lr`` or
            ``forgetting/math``.
        step: Optimizer steps taken.
        value: The metric's value, in its own unit.

    Args:
        store: The store that holds the run.
        result: The run, as ``read_result`` returns it.
    """
    metrics = store.client.get_run(result.run_id).data.metrics
    rows = [
        {"metric": name, "step": point.step, "value": point.value}
        for name in sorted(metrics)
        for point in store.client.get_metric_history(result.run_id, name)
    ]
    frame = pd.DataFrame(rows, columns=["metric", "step", "value"])
    return frame.sort_values(["metric", "step"], ignore_index=True)
