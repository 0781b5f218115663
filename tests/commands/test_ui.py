"""Test ``ui``: which address it prints, and what it serves."""

import json
import socket
import subprocess
import sys
from typing import Any

import pytest
from tiny_lab import FinishedRun, Lab


def test_the_run_has_an_address_of_its_own(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    popen = subprocess.Popen

    def serve(command: list[str], cwd: Any, **options: Any) -> Any:
        served.append((command, cwd))
        return popen([sys.executable, "-c", ""], **options)

    monkeypatch.setattr(subprocess, "Popen", serve)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    info = finished.lab.run.info
    outcome = finished.lab("ui", info.run_id[:6], f"--port={port}")
    assert outcome.code == 0, outcome.err
    address = f"http://127.0.0.1:{port}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
    assert f"{info.run_name}: {address}?workflowType=machine_learning" in outcome.out
    runs = "runs?workflowType=machine_learning&viewStateShareKey=sft_lab"
    assert f"/#/experiments/{info.experiment_id}/{runs}" in outcome.out
    tags = finished.lab.store.client.get_experiment(info.experiment_id).tags
    columns = json.loads(tags["mlflow.sharedViewState.sft_lab"])["selectedColumns"]
    assert columns == ["metrics.`ability/math`"]  # trained to the end, so nothing to forget yet
    ((command, cwd),) = served
    assert command[-1].endswith("mlruns/mlflow.db")
    assert cwd == finished.lab.folder  # artifacts are relative to it


def test_a_store_without_runs_is_refused(lab: Lab) -> None:
    outcome = lab("ui")
    assert outcome.code == 2
    assert "holds no run yet" in outcome.err
