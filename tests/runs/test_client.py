import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_lab import FinishedRun, Lab

from sft_lab.errors import RequestError
from sft_lab.runs.client import StoreClient, local_folder, relative_location
from sft_lab.runs.record import read_record
from sft_lab.runs.results import read_answers
from sft_lab.runs.store import DIGEST_TAG, RunStore


def test_artifacts_in_the_folder_of_the_store_have_a_relative_location(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlruns/mlflow.db"
    assert relative_location(file, tmp_path / "mlruns/artifacts") == "mlruns/artifacts"
    assert relative_location(file, tmp_path / "elsewhere/artifacts") is None
    # `mlflow ui` is started beside the store then, where `mlruns/artifacts` does not exist.
    file.parent.mkdir()
    monkeypatch.chdir(file.parent)
    assert relative_location(file, tmp_path / "mlruns/artifacts") is None


@pytest.mark.parametrize("location", ["/lab/mlruns/artifacts", "file:///lab/a", "s3://lab/a"])
def test_absolute_locations_are_left_to_mlflow(location: str) -> None:
    assert local_folder(Path("/lab/mlruns/mlflow.db"), location) is None


def test_artifacts_are_written_and_read_in_the_place_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlruns").mkdir()
    client = StoreClient("sqlite:///mlruns/mlflow.db")
    experiment = client.open_experiment("lab", "mlruns/artifacts")
    assert client.open_experiment("lab", "elsewhere") == experiment
    assert client.get_experiment(experiment).artifact_location == "mlruns/artifacts"
    run = client.create_run(experiment).info
    assert run.artifact_uri == f"mlruns/artifacts/{run.run_id}/artifacts"
    client.log_text(run.run_id, "one", "texts/1.txt")
    shutil.move("mlruns", "moved")
    Path("away").mkdir()
    monkeypatch.chdir("away")
    moved = StoreClient("sqlite:///../moved/mlflow.db")
    assert [file.path for file in moved.list_artifacts(run.run_id, "texts")] == ["texts/1.txt"]
    assert Path(moved.download_artifacts(run.run_id, "texts/1.txt")).read_text() == "one"
    moved.log_text(run.run_id, "two", "texts/2.txt")
    folder = tmp_path / f"moved/artifacts/{run.run_id}/artifacts/texts"
    assert sorted(file.name for file in folder.iterdir()) == ["1.txt", "2.txt"]
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_a_moved_lab_is_resumed_compared_and_read(
    finished: FinishedRun, stopped_lab: Lab, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="stopped by the test"):
        stopped_lab.fit("--trainer.callbacks+=stopper.Stop", "--trainer.callbacks.step=7")
    lab = replace(stopped_lab, folder=tmp_path / "moved/deeper")
    lab.folder.mkdir(parents=True)
    for name in ("mlruns", "tiny.yaml", "stopper.py"):
        shutil.move(stopped_lab.folder / name, lab.folder / name)
    outcome = lab.fit("--ckpt_path=last")
    assert outcome.code == 0, outcome.err
    assert lab.points("val_loss/general") == finished.lab.points("val_loss/general")
    assert not (stopped_lab.folder / "mlruns").exists()
    run_id = lab.run.info.run_id
    outcome = lab("compare", run_id, run_id, "--json")
    assert outcome.code == 0, outcome.err
    assert [run["run_id"] for run in json.loads(outcome.out)["runs"]] == [run_id, run_id]
    shutil.copytree(lab.folder / "mlruns", tmp_path / "copy")
    copied = RunStore(f"sqlite:///{tmp_path}/copy/mlflow.db")
    assert read_record(copied, run_id) == read_record(lab.store, run_id)
    for step in (0, 12):
        answers = read_answers(copied, run_id, "world_math", step)
        assert answers == read_answers(lab.store, run_id, "world_math", step)


def test_a_changed_artifact_is_noticed_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = StoreClient("sqlite:///mlruns/mlflow.db")
    experiment = client.open_experiment("lab", "mlruns/artifacts")
    run_id = client.create_run(experiment, tags={DIGEST_TAG: "d"}).info.run_id
    client.log_text(run_id, "one", "texts/1.txt")
    client.log_text(run_id, "two", "texts/1.txt")  # as a resumed run does
    store = RunStore("sqlite:///mlruns/mlflow.db")
    assert store.artifact_text(run_id, "texts/1.txt") == "two"
    folder = tmp_path / f"mlruns/artifacts/{run_id}/artifacts"
    (folder / "texts/1.txt").write_text("twp")
    with pytest.raises(RequestError, match=r"texts/1\.txt has changed since the run wrote it"):
        store.artifact_text(run_id, "texts/1.txt")
    with pytest.raises(RequestError, match=r"texts/1\.txt has changed since the run wrote it"):
        store.artifact_folder(run_id, "texts", tmp_path)
    (folder / "texts/1.txt").write_text("one")  # killed before the second was moved into place
    assert store.artifact_text(run_id, "texts/1.txt") == "one"
    (folder / "texts/1.txt").unlink()
    (folder / "texts/2.txt").touch()
    with pytest.raises(RequestError, match=r"texts/1\.txt is gone, or the run was stopped"):
        store.artifact_folder(run_id, "texts", tmp_path)
