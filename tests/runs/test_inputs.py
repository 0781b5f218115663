"""Inputs of a run that change between its processes."""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tiny_lab import FinishedRun, Lab

from sft_lab.errors import RequestError
from sft_lab.model.base_digest import base_digest
from sft_lab.runs.inputs import check_inputs

CONFIG = ("--config=tiny.yaml", "--config=scripted.yaml")


def one_row_more(world: Path) -> None:
    path = world / "data/general.jsonl"
    first, *_ = lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, first.replace("what is", "and what is")]) + "\n")


def one_row_less(world: Path) -> None:
    path = world / "data/math.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def one_word_edited(world: Path) -> None:
    path = world / "data/math.jsonl"
    path.write_text(path.read_text().replace("#### 46", "#### 47"))


def fewer_items(world: Path) -> None:
    path = world / "data/world_math.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


def one_byte_of_the_weights(world: Path) -> None:
    path = world / "base/model.safetensors"
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a careless copy would


def another_tokenizer(world: Path) -> None:
    path = world / "base/tokenizer_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "clean_up_tokenization_spaces": True}))


CHANGES: dict[Callable[[Path], None], str] = {
    one_row_more: r"corpus\.sources\.general has changed .* \(24 rows\), it is .* \(25 rows\)",
    one_row_less: r"corpus\.sources\.math has changed .* \(24 rows\), it is .* \(23 rows\)",
    one_word_edited: r"corpus\.sources\.math has changed .* \(24 rows\), it is .* \(24 rows\)",
    fewer_items: r"evaluation\.benchmarks\.world_math has changed .* \(4 items\), .* \(3 items\)",
    one_byte_of_the_weights: r"model\.base has changed since the checkpoint was written",
    another_tokenizer: r"the tokenizer of model\.base has changed",
}


@pytest.fixture
def moved(finished: FinishedRun, tmp_path: Path) -> Iterator[Lab]:
    """The finished run's lab with a world of its own, as if killed after its last checkpoint."""
    shutil.copytree(finished.lab.folder, tmp_path / "lab")
    shutil.copytree(finished.lab.world, tmp_path / "world")
    lab = Lab(tmp_path / "lab", tmp_path / "world")
    run_id = lab.run.info.run_id
    lab.store.client.set_terminated(run_id, "KILLED")
    yield lab
    os.environ.pop("PL_GLOBAL_SEED", None)


def test_a_run_is_not_resumed_forked_or_scored_on_other_inputs(moved: Lab) -> None:
    original = moved.world.with_name("original")
    shutil.copytree(moved.world, original)
    run_id = moved.run.info.run_id
    for change, said in CHANGES.items():
        shutil.rmtree(moved.world)
        shutil.copytree(original, moved.world)
        change(moved.world)
        refused = moved("fit", *CONFIG, "--ckpt_path=last")
        assert refused.code == 2, change
        assert re.search(rf"--ckpt_path \S+last\.ckpt: {said}", refused.err), refused.err
    for command in (
        ("fit", *CONFIG, f"--from={run_id}@first"),
        ("validate", *CONFIG, f"--ckpt_path={moved.checkpoint}"),
    ):  # with the last change
        refused = moved(*command)
        assert refused.code == 2, command
        assert "the tokenizer of model.base has changed" in refused.err
    one_byte_of_the_weights(moved.world)
    refused = moved("export", f"--ckpt_path={moved.checkpoint}", "--out=out")
    assert refused.code == 2
    assert "model.base has changed since the checkpoint was written" in refused.err
    assert [run.info.run_id for run in moved.runs] == [run_id]
    assert moved.run.info.status == "KILLED"


def test_the_record_of_a_trained_stage_is_never_written_again(
    moved: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also not where only the code has changed, which no input shows."""
    folder = moved.folder / "mlruns/artifacts" / moved.run.info.run_id / "artifacts"
    names = ("samples/first.tsv", "windows/first.tsv", "record.json")
    before = {name: (folder / name).stat().st_ino for name in names}
    trained = moved.json("record.json")["stages"]["first"]
    monkeypatch.setattr("sft_lab.runs.inputs.version", lambda package: f"{package} of tomorrow")
    monkeypatch.setattr(
        "sft_lab.runs.contents.manifest", lambda data, stage: f"{stage} as other code plans it"
    )
    shutil.copy(moved.checkpoint.with_name("stages") / "first.ckpt", moved.checkpoint)
    with closing(sqlite3.connect(moved.folder / "mlruns/mlflow.db")) as store, store:
        store.execute("DELETE FROM metrics WHERE step > 1")  # as in an older copy of the store
    outcome = moved("fit", *CONFIG, "--ckpt_path=last")
    assert outcome.code == 0, outcome.err
    after = {name: (folder / name).stat().st_ino for name in names}
    assert [name for name in names if after[name] != before[name]] == ["record.json"]
    assert moved.json("record.json")["stages"]["first"] == trained
    # Changed versions are reported and recorded, not refused.
    assert "changed since the checkpoint was written, so numbers may differ: ver" in caplog.text
    changes = moved.run.data.tags["sft_lab.changed_on_resume"]
    assert "now torch of tomorrow" in changes
    # So is a gap of the curves, which no resume fills.
    [gap] = re.findall(r"points of the run in \S+mlflow\.db: (\d+), now (\d+), as in an", changes)
    assert int(gap[0]) > int(gap[1]) > 0


def test_plans_of_stages_to_come_may_change() -> None:
    old, new = {"the plan of stage 'a'": "1", "version of x": "1"}, {"the plan of stage 'a'": "2"}
    assert check_inputs(old, new, "--ckpt_path x") == []
    with pytest.raises(RequestError, match=r"--ckpt_path x: the plan of stage 'a' has changed"):
        check_inputs(old, new, "--ckpt_path x", trained=["a"])
    assert check_inputs(old, {"version of x": "2"}, "") == ["version of x: 1, now 2"]


def test_a_base_is_hashed_once(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_digest(str(tiny_base))
    monkeypatch.setattr("hashlib.file_digest", None)
    assert base_digest(str(tiny_base)) == before
