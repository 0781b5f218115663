"""Run a study on a real Ray cluster on loopback and kill one of its two workers."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from ray_cluster import Cluster
from study_runs import STUDY, recorded_study, start_study
from tiny_lab import Lab

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(
    study_lab: Lab, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    # A study of this process, in another test, has asked Ray for a cluster of one machine.
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    environment = {
        "SFT_LAB_WORLD": str(study_lab.world),
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{study_lab.folder}",
    }
    made = Cluster(tmp_path_factory.mktemp("cluster"), environment)
    yield made
    made.stop()


def fits_under(cluster: Cluster) -> list[psutil.Process]:
    """Return the ``fit`` processes that the worker has started."""
    children = psutil.Process(cluster.worker.pid).children(recursive=True)
    # Without argv[0]: Ray may start the interpreter under another name.
    return [child for child in children if _is_fit(child)]


def _is_fit(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[1:4] == ["-m", "sft_lab", "fit"]
    except psutil.NoSuchProcess:  # it has ended since it was listed
        return False


def test_losing_a_machine_loses_no_step_before_the_last_checkpoint(
    study_lab: Lab, cluster: Cluster
) -> None:
    lab = study_lab
    arms = {"math": {"config": "./math.yaml"}}
    study = {**STUDY, "seeds": [0, 1], "questions": {"q": {"title": "?", "arms": arms}}}
    lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    process = start_study(lab, f"--address={cluster.address}")
    folder = lab.folder / "mlruns/checkpoints"
    deadline = time.monotonic() + 400
    while not (fits_under(cluster) and list(folder.glob("*/last.ckpt"))):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    started = {run.info.run_id for run in lab.runs}
    cluster.kill_worker()
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "2 of 2 runs finished." in out
    assert started <= {run.info.run_id for run in lab.runs}
    assert len(lab.runs) == 2  # the lost run was resumed
    assert {cell["state"] for cell in recorded_study(lab)["cells"]} == {"finished"}
    for found in lab.runs:
        lab.points("train_loss/all", found.info.run_id)  # no step twice


def test_an_address_without_a_cluster_is_refused(study_lab: Lab) -> None:
    outcome = study_lab("study", "--config=study.yaml", "--address=127.0.0.1:1")
    assert outcome.code == 2
    assert "--address 127.0.0.1:1: no Ray cluster answers" in outcome.err
    assert not study_lab.runs
