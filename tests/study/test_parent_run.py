from pathlib import Path

import pytest

from sft_lab.errors import RequestError
from sft_lab.study.job import CELL_TAG, PARENT_TAG
from sft_lab.study.parent_run import ParentRun, open_parent
from sft_lab.tracking import DIGEST_TAG, PROCESS_TAG, RunStore, this_process

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
