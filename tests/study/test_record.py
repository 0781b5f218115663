import json
from pathlib import Path

import pytest

from sft_lab.errors import RequestError
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
    """Begin a run of a cell as ``fit`` does, and leave it running."""
    experiment = store.client.get_experiment_by_name("sft_lab").experiment_id
    tags = {DIGEST_TAG: "d", CELL_TAG: cell, PARENT_TAG: parent, PROCESS_TAG: process}
    return str(store.client.create_run(experiment, tags=tags).info.run_id)


def status(store: RunStore, run_id: str) -> str:
    return str(store.client.get_run(run_id).info.status)


def test_of_a_lost_machine_the_run_is_given_up_and_no_other(store: RunStore) -> None:
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


def test_a_study_that_goes_on_takes_up_its_run_and_gives_up_what_its_driver_left(
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


def test_a_study_is_not_begun_twice_at_once(store: RunStore) -> None:
    open_study(store)
    with pytest.raises(RequestError, match="study s goes on already, in process"):
        open_study(store)


ABILITIES = {"math": "gsm8k/strict", "general": "ifeval/x", "mt_bench": "mt_bench/mean"}


def recorded(store: RunStore, sources: dict[str, str]) -> ParentRun:
    """File a study of one finished run, which trained math and general."""
    parent = open_study(store)
    run_id = begin(store, parent.run_id, "cell", this_process())
    store.client.set_tag(run_id, "command", "fit")
    for source in ("all", "math", "general"):
        store.client.log_metric(run_id, f"train_loss/{source}", 1.0)
    record = RunRecord({}, {"s": StageRecord(3, 1, {}, {}, "")}, {}, {})
    store.client.log_text(run_id, record.to_json(), RECORD)
    cells = (CellSpec("q", "one", {}, 0, (), {}),)
    run = StudyRun("d", cells, {"s": 3}, 0, 0, {"s": "s"}, "b", {}, ABILITIES, sources)
    design = StudyDesign("s", ".", {"q": QuestionDesign("?", {"one": Arm("one.yaml")})})
    parent.record(design, run, {"d": Progress(run, "finished", run_id=run_id)}, {})
    return parent


def test_a_study_knows_the_source_of_each_ability(store: RunStore) -> None:
    sources = {"math": "math", "general": "general", "mt_bench": "general"}
    parent = recorded(store, sources)
    study = read_study(store, parent.run_id)
    assert (study.abilities, study.sources) == (ABILITIES, sources)


def test_of_a_study_filed_before_that_the_sources_are_those_that_its_runs_trained(
    store: RunStore,
) -> None:
    parent = recorded(store, {})
    content = json.loads(store.artifact_text(parent.run_id, "cells.json"))
    del content["sources"]
    store.client.log_text(parent.run_id, json.dumps(content), "cells.json")
    study = read_study(store, parent.run_id)
    assert study.sources == {"math": "math", "general": "general"}
    assert [cell.result is not None for cell in study.questions[0].cells] == [True]
