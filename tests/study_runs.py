"""Run studies of the tiny world in a subprocess."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_lab import Lab

# 5 steps of math; a fork of it with 5 more of general; and a copy of the first.
STUDY: dict[str, Any] = {
    "name": "tiny",
    "strategies": ".",
    "seeds": [0],
    "questions": {
        "q": {
            "title": "What does general data cost?",
            "arms": {
                "math": {"config": "./math.yaml"},
                "both": {
                    "config": "./tiny.yaml",
                    "grid": {"k": {"values": [0], "keys": ["data.k"]}},
                },
                "same": {"config": "./math.yaml"},
            },
        }
    },
}


@pytest.fixture
def study_lab(lab: Lab) -> Lab:
    tiny = yaml.safe_load((lab.folder / "tiny.yaml").read_text().replace("${data.k}", "K"))
    tiny["data"]["stages"]["second"]["mixture"]["math"] = "${data.k}"
    lab.write("tiny.yaml", yaml.safe_dump(tiny, sort_keys=False))
    del tiny["data"]["stages"]["second"]
    lab.write("math.yaml", yaml.safe_dump(tiny, sort_keys=False))
    lab.write("study.yaml", yaml.safe_dump(STUDY, sort_keys=False))
    return lab


def start_study(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
    lab.store.client.search_experiments()  # makes the store, by a copy
    environment = {
        **os.environ,
        "SFT_LAB_WORLD": str(lab.world),
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{lab.folder}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",  # as in ray_cluster
    }
    return subprocess.Popen(
        [sys.executable, "-m", "sft_lab", "study", "--config=study.yaml", *arguments],
        cwd=lab.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_study(lab: Lab, *arguments: str) -> tuple[int, str, str]:
    process = start_study(lab, *arguments)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def wait_for_checkpoint(lab: Lab, process: subprocess.Popen[str]) -> None:
    """Wait until one of a study's runs has written its first checkpoint."""
    deadline = time.monotonic() + 300
    while not list((lab.folder / "mlruns/checkpoints").glob("*/last.ckpt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)


def recorded_study(lab: Lab) -> dict[str, Any]:
    from sft_lab.study.record import find_parents

    (parent, *_) = find_parents(lab.store)
    content = json.loads(lab.store.artifact_text(parent.info.run_id, "cells.json"))
    return {"status": parent.info.status, "run_id": parent.info.run_id, **content}
