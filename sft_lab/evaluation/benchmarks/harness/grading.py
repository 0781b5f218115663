"""Grade the responses to requests of lm-evaluation-harness by the task's filters and metrics."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sft_lab.metrics.score import Score

_NUM_RESAMPLES = 1000


def metric_key(metric: str, filter_name: str) -> str:
    """Return the name of a metric after a filter."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def grade(task: Any, instances: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the values of a task's metrics for each item, by ``metric_key``.

    The value of a metric that is not a mean is what its aggregation takes, such as a pair.

    Args:
        task: The harness's task.
        instances: The requests of each item, with their responses.
    """
    task._instances = [instance for some in instances for instance in some]  # no public setter
    task.apply_filters()
    return [
        {
            metric_key(metric, filter_name): _plain(value)
            for filter_name in some[0].filtered_resps
            for metric, value in task.process_results(
                some[0].doc, [instance.filtered_resps[filter_name] for instance in some]
            ).items()
        }
        for some in instances
    ]


def response(instances: Sequence[Any]) -> str:
    """Return a model's answer to an item, or the log-likelihood of every continuation."""
    lines = []
    for instance in instances:
        found = instance.resps[0]
        if isinstance(found, str):
            lines.append(found)
        else:
            value = found[0] if isinstance(found, tuple) else found
            lines.append(f"{value:.4f} {instance.args[-1]}")
    return "\n".join(lines)


def aggregate(values: Sequence[Any], aggregation: Callable[[Sequence[Any]], float]) -> Score:
    """Return a task's own aggregate of its items, with the bootstrap's interval.

    Args:
        values: A value per item.
        aggregation: The task's aggregation.
    """
    draws = np.random.default_rng(0).integers(0, len(values), (_NUM_RESAMPLES, len(values)))
    drawn = [float(aggregation([values[index] for index in draw])) for draw in draws]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Score(float(aggregation(values)), float(low), float(high), len(values))


def _plain(value: Any) -> Any:
    """Return a numpy value as Python's own, which can be written as JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return tuple(_plain(part) for part in value)
    return value
