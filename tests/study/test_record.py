from pathlib import Path
from typing import cast

import pytest

from sft_lab.errors import RequestError
from sft_lab.launch.run_config import RunConfig
from sft_lab.runs.lock import this_process
from sft_lab.runs.record import RECORD, RunRecord, StageRecord
from sft_lab.runs.store import DIGEST_TAG, PROCESS_TAG, RunStore
from sft_lab.study.design import Arm, CellSpec, QuestionDesign, StudyDesign
from sft_lab.study.job import CELL_TAG, PARENT_TAG
from sft_lab.study.record import ParentRun, open_parent, read_study
from sft_lab.study.runner import Progress
from sft_lab.study.runs import StudyRun

ELSEWHERE = "another-machine:1:1"
CONFIG = {"name": "s"}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(f"sqlite:///{tmp_path}/mlflow.db")


def open_study(store: RunStore) -> ParentRun:
    return open_parent(store, "sft_lab", None, "s", CONFIG)


def begin(store: RunStore, parent: str, cell: str, process: str) -> str:
    """Start a run of a cell as ``fit`` does, and leave it running."""
    experiment = store.client.get_experiment_by_name("sft_lab").experiment_id
    tags = {DIGEST_TAG: "d", CELL_TAG: cell, PARENT_TAG: parent, PROCESS_TAG: process}
    return str(store.client.create_run(experiment, tags=tags).info.run_id)


def status(store: RunStore, run_id: str) -> str:
    return str(store.client.get_run(run_id).info.status)


def test_only_the_run_of_a_lost_machine_is_marked_killed(store: RunStore) -> None:
    parent = open_study(store)
    lost = begin(store, parent.run_id, "lost", ELSEWHERE)
    others = [
        begin(store, parent.run_id, "another cell", ELSEWHERE),
        begin(store, "another study", "lost", ELSEWHERE),
        begin(store, parent.run_id, "lost", this_process()),
    ]
    parent.give_up("lost")
    assert status(store, lost) == "KILLED"
    assert [status(store, run_id) for run_id in others] == ["RUNNING"] * 3


def test_a_resumed_study_reopens_its_run_and_marks_leftover_runs_killed(
    store: RunStore,
) -> None:
    first = open_study(store)
    left = begin(store, first.run_id, "cell", ELSEWHERE)
    first.end("KILLED")
    again = open_study(store)
    assert again.run_id == first.run_id
    assert status(store, left) == "KILLED"


def test_a_study_that_has_finished_or_changed_gets_a_new_run(store: RunStore) -> None:
    first = open_study(store)
    first.end("FINISHED")
    second = open_study(store)
    assert second.run_id != first.run_id
    second.end("KILLED")
    changed = open_parent(store, "sft_lab", None, "s", {**CONFIG, "seeds": [1]})
    assert changed.run_id not in (first.run_id, second.run_id)


def test_a_running_study_cannot_be_started_again(store: RunStore) -> None:
    open_study(store)
    with pytest.raises(RequestError, match="study s is already running in process"):
        open_study(store)


ABILITIES = {"math": "gsm8k/strict", "general": "ifeval/x", "mt_bench": "mt_bench/mean"}


def test_a_recorded_study_is_read_back(store: RunStore) -> None:
    sources = {"math": "math", "general": "general", "mt_bench": "general"}
    parent = open_study(store)
    run_id = begin(store, parent.run_id, "cell", this_process())
    store.client.set_tag(run_id, "command", "fit")
    for source in ("all", "math", "general"):
        store.client.log_metric(run_id, f"train_loss/{source}", 1.0)
    record = RunRecord({}, {"s": StageRecord(3, 1, {}, {}, "")}, {}, {})
    store.client.log_text(run_id, record.to_json(), RECORD)
    cells = (CellSpec("q", "one", {}, 0, (), {}),)
    config = cast(RunConfig, None)  # is not recorded
    run = StudyRun("d", cells, {"s": 3}, 0, 0, {"s": "s"}, "b", config, ABILITIES, sources)
    design = StudyDesign("s", ".", {"q": QuestionDesign("?", {"one": Arm("one.yaml")})})
    parent.record(design, run, {"d": Progress(run, "finished", run_id=run_id)}, {})
    study = read_study(store, parent.run_id)
    assert (study.abilities, study.sources) == (ABILITIES, sources)
    assert [cell.result is not None for cell in study.questions[0].cells] == [True]
