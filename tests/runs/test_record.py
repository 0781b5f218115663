import json
from typing import Any

import pytest
from compared_runs import ENTRY
from tiny_lab import FinishedRun

from sft_lab.errors import RequestError
from sft_lab.runs.record import RunRecord, SourceRecord, StageRecord, read_record

RECORD = RunRecord(
    sources={"math": SourceRecord("math.jsonl", "aa", rows=24, held_out=4, report={"rows": 24})},
    stages={
        "first": StageRecord(5, 1, {"code": 1, "math": 0}, {"code": {"samples": 20}}, "bb"),
        "second": StageRecord(7, 2, {"code": "1/4", "math": {"rows": 3}}, {}, "cc"),
    },
    benchmarks={"gsm8k": ENTRY},
    abilities={"math": "gsm8k/flexible"},
)


def test_a_record_is_read_as_it_was_written() -> None:
    assert RunRecord.from_json(RECORD.to_json(), "run 1f") == RECORD


@pytest.mark.parametrize("schema", [None, 0, 99])
def test_a_record_of_another_version_is_refused(schema: int | None) -> None:
    content: dict[str, Any] = {**json.loads(RECORD.to_json()), "schema": schema}
    with pytest.raises(RequestError, match=r"run 1f: record\.json was written by another version"):
        RunRecord.from_json(json.dumps(content), "run 1f")


def test_a_source_is_trained_at_the_end_of_the_first_stage_with_a_share_of_it() -> None:
    assert RECORD.trained_at("code") == 5
    assert RECORD.trained_at("math") == 12  # the first stage has a share of 0
    assert RECORD.trained_at("chat") is None
    assert RECORD.trained_at(None) is None


def test_the_record_of_a_run(finished: FinishedRun) -> None:
    record = read_record(finished.lab.store, finished.lab.run.info.run_id)
    assert {name: stage.steps for name, stage in record.stages.items()} == {"first": 5, "second": 7}
    assert record.stages["second"].asked == {"general": 1, "math": "1/4"}
    assert record.benchmarks["scripted"].source == "math"
    assert record.benchmarks["scripted"].is_share
    assert record.trained_at("general") == 12
