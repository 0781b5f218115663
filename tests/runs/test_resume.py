"""Runs that stop and are resumed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lab import FinishedRun, Lab, MakeLab

from sft_lab import paths
from sft_lab.errors import Interrupted
from sft_lab.evaluation.generation import engines, generate
from sft_lab.runs import checkpoint
from sft_lab.runs.logger import RunLogger

STOP = "--trainer.callbacks+=stopper.Stop"


def stop(lab: Lab, step: int, *arguments: str, number: int = 0) -> None:
    """Start a run and stop it in the middle of a window, by a signal or an exception."""
    command = (STOP, f"--trainer.callbacks.step={step}", f"--trainer.callbacks.signal={number}")
    if number:
        outcome = lab.fit(*command, *arguments)
        assert outcome.code == 128 + number
        name = signal.Signals(number).name
        assert outcome.err.splitlines()[-1] == (
            f"Stopped by {name}. The same command with --ckpt_path last resumes it."
        )
        assert "Traceback" not in outcome.err
    else:
        with pytest.raises(RuntimeError, match="stopped by the test"):
            lab.fit(*command, *arguments)


def test_ctrl_c_before_the_run_exists_promises_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: RunLogger) -> str:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(RunLogger, "start", interrupted)
    outcome = lab.fit()
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "Stopped by SIGINT."
    assert not lab.store.runs()


EVERY_STEP = "--trainer.log_every_n_steps=1"


@pytest.mark.parametrize(
    ("number", "num_workers"),
    [pytest.param(signal.SIGINT, 0, marks=pytest.mark.extended), (signal.SIGTERM, 2)],
)
@pytest.mark.slow
def test_a_stopped_run_resumes_exactly(
    finished: FinishedRun, stopped_lab: Lab, number: int, num_workers: int
) -> None:
    lab = stopped_lab
    workers = f"--data.num_workers={num_workers}"
    stop(lab, 7, EVERY_STEP, workers, number=number)
    assert lab.run.info.status == "KILLED"
    # A signal lets the window end and saves after it.
    assert torch.load(lab.checkpoint, weights_only=True)["global_step"] == 8
    check_resumed(lab, finished.lab, workers)


@pytest.mark.extended
def test_a_stopped_run_of_fast_steps_resumes_exactly(make_lab: MakeLab, stopped_lab: Lab) -> None:
    fast = (
        "--data.padding_free=true",
        "--model.quantization=nf4",
        "--model.dequantize=cached",
        "--model.fused_lora=true",
        "--model.lora.lora_dropout=0",
    )
    folder = stopped_lab.folder / "unbroken"
    folder.mkdir()
    unbroken = make_lab(folder)
    assert unbroken.fit(EVERY_STEP, *fast).code == 0
    stop(stopped_lab, 7, EVERY_STEP, *fast)
    check_resumed(stopped_lab, unbroken, *fast)


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_in_one_line_and_resumes_exactly(
    finished: FinishedRun, stopped_lab: Lab
) -> None:
    lab = stopped_lab
    with pytest.MonkeyPatch.context() as patch:
        files = iter(range(99))

        def new_file(path: Path) -> Any:  # the fourth finds no space: a device that is always full
            return paths.new_file(path) if next(files) < 3 else open("/dev/full", "wb")

        patch.setattr(checkpoint, "new_file", new_file)
        outcome = lab.fit(EVERY_STEP)
    assert outcome.code == 1
    folder = lab.checkpoint.parent.relative_to(lab.folder)
    assert outcome.err.splitlines()[-1] == (
        f"error: no space is left on the disk of {folder}: the last write has failed, what was "
        "written before is whole. Free some (TMPDIR and SFT_LAB_CACHE may be elsewhere). "
        "The same command with --ckpt_path last resumes it."
    )
    assert "Traceback" not in outcome.err
    assert lab.run.info.status == "FAILED"
    assert [file.name for file in lab.checkpoint.parent.glob("*.ckpt*")] == ["last.ckpt"]
    check_resumed(lab, finished.lab)


def check_resumed(lab: Lab, unbroken: Lab, *arguments: str) -> None:
    """Resume a run, and compare it with one that was never stopped."""
    outcome = lab.fit(EVERY_STEP, "--ckpt_path=last", *arguments)
    assert outcome.code == 0, outcome.err
    assert lab.run.info.status == "FINISHED"
    for key in ("train_loss/all", "train_loss/math", "lr", "val_loss/general", "progress/tokens"):
        assert lab.points(key) == unbroken.points(key), key


@pytest.mark.slow
def test_a_resumed_run_has_the_drafts_of_an_unbroken_one(
    stopped_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts decide what one pass computes, and with it the last bits of an evaluation."""
    drafts: list[list[list[int]]] = []

    def generate_and_watch(*arguments: Any, **settings: Any) -> Any:
        drafts.append([list(draft) for draft in settings["drafts"]])
        return generate(*arguments, **settings)

    monkeypatch.setattr(engines, "generate", generate_and_watch)
    assert stopped_lab.fit().code == 0
    unbroken = list(drafts)
    assert not any(unbroken[0])
    assert all(any(some) for some in unbroken[1:])
    drafts.clear()
    checkpoint = f"--ckpt_path={stopped_lab.checkpoint}"
    outcome = stopped_lab("validate", "--config=tiny.yaml", checkpoint)
    assert outcome.code == 0, outcome.err
    assert drafts == unbroken[-1:]  # not what it has answered then
    drafts.clear()
    stop(stopped_lab, 7)
    assert 0 < len(drafts) < len(unbroken)
    outcome = stopped_lab.fit("--ckpt_path=last")
    assert outcome.code == 0, outcome.err
    assert drafts == unbroken


def test_last_without_a_run_of_this_config_names_the_difference(stopped_lab: Lab) -> None:
    stop(stopped_lab, 1)
    refused = stopped_lab.fit("--ckpt_path=last", "--data.batch_size=8")
    assert refused.code == 2
    run_id = stopped_lab.run.info.run_id[:8]
    assert f"The newest, tiny k=1/4 seed 0 ({run_id}), has data.batch_size 4, not 8." in refused.err


@pytest.mark.slow
def test_only_stages_to_come_can_be_edited(stopped_lab: Lab) -> None:
    lab = stopped_lab
    stop(lab, 3)
    path = f"--ckpt_path={lab.checkpoint}"
    refused = lab.fit(path, "--data.stages.first.lr=1e-3")
    assert refused.code == 2
    assert "data.stages.first.lr: stage 'first' has been trained with 0.01" in refused.err
    assert "the config now says 0.001" in refused.err
    edit = ("--data.stages.second.max_steps=2", STOP, "--trainer.callbacks.step=6")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        lab.fit(path, *edit)
    refused = lab.fit("--ckpt_path=last", "--data.stages.second.max_steps=3")
    assert refused.code == 2
    assert (
        f"To change a stage to come, name its checkpoint: {lab.checkpoint}"
        in refused.err.replace("mlruns", f"{lab.folder}/mlruns")
    )
    # The record says what is trained now, and `last` finds the run by it.
    assert lab.json("record.json")["stages"]["second"]["steps"] == 2
    outcome = lab.fit("--ckpt_path=last", "--data.stages.second.max_steps=2")
    assert outcome.code == 0, outcome.err
    assert list(lab.points("progress/stage")) == [0, 4, 5, 7]
    assert lab.run.data.params["data.stages.second.max_steps"] == "None"


@pytest.mark.slow
def test_a_bad_checkpoint_is_refused(stopped_lab: Lab) -> None:
    lab = stopped_lab
    stop(lab, 3)
    whole = lab.checkpoint.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        lab.checkpoint.write_bytes(whole[:size])
        for path in ("last", str(lab.checkpoint)):
            refused = lab.fit(f"--ckpt_path={path}")
            assert refused.code == 2, size
            assert "last.ckpt is damaged or not a checkpoint" in refused.err
    torch.save({"state_dict": {}}, lab.checkpoint)
    refused = lab.fit(f"--ckpt_path={lab.checkpoint}")
    assert refused.code == 2
    assert "is not a checkpoint of this lab" in refused.err


def test_a_checkpoint_whose_run_is_elsewhere_is_refused(finished: FinishedRun, lab: Lab) -> None:
    refused = lab.fit(
        "--config=scripted.yaml",
        f"--ckpt_path={finished.lab.checkpoint}",
    )
    assert refused.code == 2
    run_id = finished.lab.run.info.run_id[:8]
    assert f"its run {run_id} is not in sqlite:///mlruns/mlflow.db" in refused.err


@pytest.mark.slow
def test_a_run_without_its_checkpoint_starts_over_and_says_so(
    stopped_lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    stop(stopped_lab, 0)
    assert not stopped_lab.checkpoint.exists()
    stop(stopped_lab, 6, "--ckpt_path=last")
    assert "is missing" not in caplog.text  # it had taken no step
    stopped_lab.checkpoint.unlink()
    outcome = stopped_lab.fit("--ckpt_path=last")
    assert outcome.code == 0, outcome.err
    assert f"{stopped_lab.run.info.run_id}/last.ckpt is missing" in caplog.text
    assert list(stopped_lab.points("world_math/format_free")) == [0, 4, 5, 8, 12]


@pytest.mark.extended  # a process of its own for the exit code; the record is checked above
def test_a_failing_run_exits_with_1_and_says_why(stopped_lab: Lab) -> None:
    command = [sys.executable, "-m", "sft_lab", "fit", "--config=tiny.yaml", STOP]
    environment = {**os.environ, "SFT_LAB_WORLD": str(stopped_lab.world), "PYTHONPATH": "."}
    done = subprocess.run(
        [*command, "--trainer.callbacks.step=1"],
        cwd=stopped_lab.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError: stopped by the test" in done.stderr
    assert stopped_lab.run.info.status == "FAILED"


@pytest.mark.slow
def test_validate_scores_a_checkpoint_as_its_run_did(finished: FinishedRun, lab: Lab) -> None:
    def score(command: str, *arguments: str) -> dict[str, float]:
        outcome = lab(command, "--config=tiny.yaml", *arguments)
        assert outcome.code == 0, outcome.err
        (run, *_) = lab.runs
        assert run.info.status == "FINISHED"
        assert run.data.tags["command"] == command
        return {key: run.data.metrics[key] for key in ("val_loss/math", "val_loss/general")}

    def measured(step: int) -> dict[str, float]:
        keys = ("val_loss/math", "val_loss/general")
        return {key: finished.lab.points(key)[step] for key in keys}

    checkpoint = f"--ckpt_path={finished.lab.checkpoint}"
    assert score("validate") == measured(0)
    assert score("validate", checkpoint) == measured(12)
    assert score("test", checkpoint) == measured(12)


def test_a_checkpoint_of_other_adapters_is_not_scored(finished: FinishedRun, lab: Lab) -> None:
    checkpoint: Path = finished.lab.checkpoint
    refused = lab("validate", "--config=tiny.yaml", f"--ckpt_path={checkpoint}", "--model.lora.r=8")
    assert refused.code == 2
    assert "model.lora" in refused.err
    assert lab.runs == []
