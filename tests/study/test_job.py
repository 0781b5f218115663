"""Run a study's job: what it refuses, and how it calls ``fit``."""

import os
import pickle
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from lock_holder import held
from study_runs import STUDY
from tiny_lab import Lab

from sft_lab.config.compose import compose_files, dump
from sft_lab.launch.parser import parse
from sft_lab.runs.lock import this_process
from sft_lab.runs.store import DIGEST_TAG, PROCESS_TAG, RunStore
from sft_lab.study.digests import code_digest
from sft_lab.study.job import CELL_TAG, Job
from sft_lab.study.record import ParentRun
from sft_lab.study.run_job import find_runs, run_job
from sft_lab.study.study import lay_out, make_job


@pytest.fixture
def job(study_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The study's first job, as made by a driver with its own environment."""
    monkeypatch.chdir(study_lab.folder)
    monkeypatch.setenv("SFT_LAB_WORLD", str(study_lab.world))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlruns/other.db")
    monkeypatch.setenv("HF_HOME", "/models")
    study = lay_out(["--config=study.yaml"])
    return make_job(study, ParentRun(study.store, "p"), study.runs[0], None)


def test_a_job_carries_the_settings_that_its_study_was_planned_with(
    study_lab: Lab, job: Job
) -> None:
    assert job.tracking_uri == "sqlite:///mlruns/other.db"
    config = yaml.safe_load(job.config.read_text())
    assert config["trainer"]["logger"]["init_args"]["tracking_uri"] == "sqlite:///mlruns/other.db"
    assert config["trainer"]["precision"] in ("bf16-mixed", "32-true")
    assert job.environment["SFT_LAB_WORLD"] == str(study_lab.world)
    assert job.environment["HF_HOME"] == "/models"
    assert job.code == code_digest()


def test_a_machine_with_different_code_is_refused(job: Job) -> None:
    ended = run_job(replace(job, code="0" * 64, environment={}))
    assert (ended.code, ended.run_id) == (os.EX_CONFIG, None)
    assert "different code" in ended.reason
    assert not job.log.exists()  # nothing was started


def test_a_cell_that_another_process_is_training_is_left_alone(job: Job) -> None:
    job = replace(job, environment={})
    with held(job.dirpath / "cells" / job.digest):
        ended = run_job(job)
    assert (ended.code, ended.run_id) == (os.EX_TEMPFAIL, None)
    assert "cell 'q math seed 0' is being trained by another process" in ended.reason
    assert not job.log.exists()


def test_a_cell_whose_run_is_still_running_is_left_alone(job: Job) -> None:
    client = RunStore(job.tracking_uri).client
    tags = {DIGEST_TAG: "d", CELL_TAG: job.digest, PROCESS_TAG: this_process()}
    running = client.create_run(client.create_experiment("e"), tags=tags).info.run_id
    ended = run_job(replace(job, environment={}))
    assert (ended.code, ended.run_id) == (os.EX_TEMPFAIL, None)
    assert f"run {running[:8]} of this cell is still running" in ended.reason


def test_a_run_recorded_in_another_store_is_not_retried(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/true")
    ended = run_job(replace(job, environment={}))
    assert (ended.code, ended.run_id) == (2, None)
    assert "sqlite:///mlruns/other.db holds no finished run" in ended.reason
    # The log's first line is a command that can be run again.
    command = shlex.split(job.log.read_text().splitlines()[0])
    assert command[:5] == ["$", "/bin/true", "-m", "sft_lab", "fit"]
    config = parse(command[5:])
    assert (config.run_name, config.strategy) == ("q math seed 0", "math")


WORKER = """
import pickle, sys
from sft_lab.study.run_job import run_job

run_job(pickle.load(open(sys.argv[1], "rb")))
"""


@pytest.mark.slow
def test_a_killed_workers_run_is_left_to_stop_and_then_resumed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    job = replace(job, environment={})
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    store = RunStore(job.tracking_uri)
    store.client.search_experiments()  # creates the store, as a study does before its first job
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "job")])
    deadline = time.monotonic() + 300
    while not list(job.dirpath.glob("*/last.ckpt")):
        assert time.monotonic() < deadline
        assert worker.poll() is None
        time.sleep(0.1)
    worker.kill()
    worker.wait()
    while (ended := run_job(job)).code == os.EX_TEMPFAIL:  # its fit saves and stops
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (run,) = find_runs(store, job.digest)
    assert (ended.code, ended.run_id) == (0, run.info.run_id)


@pytest.mark.parametrize("name", ["rq1: math", "[x]", "dmt #2", "a=${oc.env:HOME}", "1", "'x'"])
def test_a_dumped_config_is_read_back_unchanged(name: str, tmp_path: Path) -> None:
    config = {"trainer": {"logger": {"init_args": {"run_name": name, "tags": {"cell": "12e345"}}}}}
    (tmp_path / "cell.yaml").write_text(dump(config), encoding="utf-8")
    assert compose_files([str(tmp_path / "cell.yaml")], {}).resolved() == config


def test_printed_commands_contain_resolved_machine_dependent_values(study_lab: Lab) -> None:
    arms = {"one": {"config": "./math.yaml", "set": {"model.optimizer": "${best_optimizer:}"}}}
    study = {**STUDY, "questions": {"q": {"title": "?", "arms": arms}}}
    study_lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    (command,) = study_lab("study", "--config=study.yaml", "--print").out.splitlines()
    name, fit, config = shlex.split(command)
    assert (name, fit) == ("sft-lab", "fit")
    written = (study_lab.folder / config.removeprefix("--config=")).read_text()
    assert "${" not in written
    assert yaml.safe_load(written)["model"]["optimizer"] in ("adamw", "paged_adamw_8bit")
    printed = study_lab("fit", config, "--print_config")
    assert printed.code == 0, printed.err
    planned = yaml.safe_load(written)
    assert yaml.safe_load(printed.out)["data"]["stages"] == planned["data"]["stages"]
