"""Run studies of the tiny world on a real, embedded Ray."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import yaml
from study_runs import STUDY, recorded_study, run_study, start_study, wait_for_checkpoint
from tiny_lab import Lab

pytestmark = pytest.mark.slow


def assert_private(study: psutil.Process) -> None:
    """Check that a study listens on loopback only, and that others cannot read its folder."""
    processes = [study, *study.children(recursive=True)]
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    (folder,) = {
        Path(argument.partition("=")[2])
        for process in processes
        for argument in process.cmdline()
        if argument.startswith("--temp_dir=")
    }
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_killed_study_runs_equal_cells_once_forks_the_rest_and_was_private(
    study_lab: Lab,
) -> None:
    lab = study_lab
    process = start_study(lab)
    wait_for_checkpoint(lab, process)
    assert_private(psutil.Process(process.pid))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    started = {run.info.run_id for run in lab.runs}
    code, out, err = run_study(lab)
    assert code == 0, err
    assert "2 of 2 runs finished." in out
    study = recorded_study(lab)
    assert study["status"] == "FINISHED"
    cells = {(c["arm"], c["seed"]): c for c in study["cells"]}
    assert list(cells) == [("math", 0), ("both", 0), ("same", 0)]
    assert cells["same", 0]["run_id"] == cells["math", 0]["run_id"]
    runs = {run.info.run_id: run for run in lab.runs}
    assert started <= set(runs)
    assert len(runs) == 2  # the started run was resumed
    assert {run.info.status for run in lab.runs} == {"FINISHED"}
    forked = runs[cells["both", 0]["run_id"]]
    assert forked.data.tags["sft_lab.forked_from"] == f"{cells['math', 0]['run_id']}@first"
    assert forked.data.tags["mlflow.parentRunId"] == study["run_id"]
    # A forked run equals an unforked one of the same config, to the last bit, without a step twice.
    assert lab.fit("--data.k=0", "--trainer.logger.init_args.run_name=alone").code == 0
    alone = next(r for r in lab.runs if r.info.run_name == "alone").info.run_id
    for key in ("train_loss/all", "lr", "world_math/format_free", "val_loss/math"):
        assert lab.points(key, cells["both", 0]["run_id"]) == lab.points(key, alone), key
    lab.points("train_loss/all", cells["math", 0]["run_id"])  # no step twice
    # Nothing is missing: the same command finds all runs finished.
    again = lab("study", "--config=study.yaml")
    assert again.code == 0, again.err
    assert "2 of 2 runs finished." in again.out
    assert len(lab.runs) == 3


def test_a_failed_run_is_reported_and_the_rest_continues(study_lab: Lab) -> None:
    lab = study_lab
    lab.write(
        "breaks.py",
        "from lightning import Callback\n\n\nclass Break(Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_step == 3:\n            raise RuntimeError('the sky fell')\n",
    )
    bad = yaml.safe_load((lab.folder / "math.yaml").read_text())
    bad["seed_everything"] = 5
    trainer = yaml.safe_load((Path(bad["trainer"])).read_text())
    bad["trainer"] = {**trainer, "callbacks": [{"class_path": "breaks.Break"}]}
    lab.write("bad.yaml", yaml.safe_dump(bad, sort_keys=False))
    arms = {"bad": {"config": "./bad.yaml"}, "math": {"config": "./math.yaml"}}
    questions = {"q": {"title": "?", "arms": arms}}
    study = {**STUDY, "seeds": [0], "attempts": 2, "questions": questions}
    lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    code, out, err = run_study(lab)
    assert code == 1, err
    assert "1 of 2 runs finished." in out
    assert "the sky fell" in out
    cells = {c["arm"]: c for c in recorded_study(lab)["cells"]}
    assert cells["bad"]["state"] == "failed"
    assert cells["math"]["state"] == "finished"
    # The second attempt resumed the first one's run.
    assert len(lab.runs) == 2


def test_ctrl_c_stops_a_study_with_its_runs_saved(study_lab: Lab) -> None:
    lab = study_lab
    process = start_study(lab)
    wait_for_checkpoint(lab, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "Stopped by SIGINT" in err
    assert recorded_study(lab)["status"] == "KILLED"
    assert "RUNNING" not in {run.info.status for run in lab.runs}
