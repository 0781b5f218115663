"""Run studies on a real Ray cluster of two workers on loopback; kill one, or fill both."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
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
    study_lab: Lab,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Cluster]:
    # A study of this process, in another test, has asked Ray for a cluster of one machine.
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    environment = {
        "SFT_LAB_WORLD": str(study_lab.world),
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{study_lab.folder}",
    }
    num_cores = getattr(request, "param", 1)
    made = Cluster(tmp_path_factory.mktemp("cluster"), environment, num_cores)
    yield made
    made.stop()


def fits_under(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the ``fit`` processes that a node has started."""
    children = psutil.Process(node.pid).children(recursive=True)
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
    while not (fits_under(cluster.worker) and list(folder.glob("*/last.ckpt"))):
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


def threads_by_rank(fit: psutil.Process) -> dict[str, str]:
    """Return the number of threads that each process of a run may use, by its rank."""
    found = {}
    for child in fit.children():
        with suppress(psutil.NoSuchProcess):
            environment = child.environ()
            if "RANK" in environment:
                found[environment["RANK"]] = environment["OMP_NUM_THREADS"]
    return found


@pytest.mark.extended
@pytest.mark.parametrize("cluster", [4], indirect=True)
def test_runs_of_two_processes_fill_two_workers(study_lab: Lab, cluster: Cluster) -> None:
    lab = study_lab
    study = {
        **STUDY,
        "seeds": [0, 1],
        "resources": {"cpus": 4},
        "set": {"trainer.devices": 2, "trainer.accelerator": "cpu", "data.micro_batch_size": 1},
        "questions": {"q": {"title": "?", "arms": {"math": {"config": "./math.yaml"}}}},
    }
    lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    process = start_study(lab, f"--address={cluster.address}")
    workers, full = (cluster.head, cluster.worker), [[{"0": "2", "1": "2"}]] * 2
    running = []
    while process.poll() is None and running != full:
        running = [[threads_by_rank(fit) for fit in fits_under(worker)] for worker in workers]
        time.sleep(0.1)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert running == full  # at one time a run on each worker, of two processes each
    assert "2 of 2 runs finished." in out
    assert [run.data.params["devices"] for run in lab.runs] == ["2", "2"]
    first, second = (lab.points("train_loss/all", run.info.run_id) for run in lab.runs)
    assert list(first) == list(second)  # and no step twice


def test_an_address_without_a_cluster_is_refused(study_lab: Lab) -> None:
    outcome = study_lab("study", "--config=study.yaml", "--address=127.0.0.1:1")
    assert outcome.code == 2
    assert "--address 127.0.0.1:1: no Ray cluster answers" in outcome.err
    assert not study_lab.runs
