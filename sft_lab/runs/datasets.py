"""A run's sources and benchmarks as MLflow data sets, with their digests."""

import json
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from sft_lab.runs.record import RunRecord

_DIGEST_LENGTH = 36  # the longest that MLflow takes


def dataset_inputs(record: RunRecord) -> list[DatasetInput]:
    """Return what a run trains on and is measured by."""
    trained = [
        _input(
            name,
            source.digest,
            source.path,
            "training",
            {"rows": source.rows, "held_out": source.held_out},
        )
        for name, source in record.sources.items()
    ]
    measured = [
        _input(name, found.digest, name, "evaluation", {"items": found.items})
        for name, found in record.benchmarks.items()
    ]
    return [*trained, *measured]


def _input(
    name: str, digest: str, path: str, context: str, profile: Mapping[str, Any]
) -> DatasetInput:
    dataset = Dataset(
        name,
        digest[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": path}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
