"""Runs that start from the end of another run's stage, held against runs from nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import STOPPER, TINY, Lab, MakeLab

from sft_lab.checkpoint import last_checkpoint
from sft_lab.fork import FORK_TAG

CONFIGS = Path(__file__).parents[1] / "configs"
CLOCKS = ("speed/", "time/")

FIRST = "    first: {mixture: {math: 1}, epochs: 1, lr: 1e-2}\n"
# 5 steps of math, 7 of general and math over two passes, 3 of math.
STAGES = {
    "one": FIRST,
    "two": f"{FIRST}    second: {{mixture: {{general: 1, math: 1/4}}, epochs: 1, lr: 5e-3}}\n",
    "three": f"{FIRST}    middle: {{mixture: {{general: 3/5}}, epochs: 2, lr: 2e-2, "
    "lr_schedule: linear, optimizer: keep}\n"
    "    last: {mixture: {math: 1}, max_steps: 3, lr: 3e-3}\n",
    "three_less_last": f"{FIRST}    middle: {{mixture: {{general: 3/5}}, epochs: 2, lr: 2e-2, "
    "lr_schedule: linear, optimizer: keep}\n",
}


def fit(lab: Lab, name: str, *arguments: str) -> str:
    """Run a config of ``STAGES`` and return the run's id."""
    outcome = lab("fit", f"--config={name}.yaml", "--trainer.log_every_n_steps=2", *arguments)
    assert outcome.code == 0, outcome.err
    return str(lab.runs[0].info.run_id)


def fill(lab: Lab) -> Lab:
    head = TINY.format(configs=CONFIGS).split("  stages:\n")[0]
    for name, stages in STAGES.items():
        lab.write(f"{name}.yaml", f"{head}  stages:\n{stages}")
    lab.write("stopper.py", STOPPER)
    return lab


@pytest.fixture(scope="module")
def forks(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab with a finished run of every config of ``STAGES`` from nothing, named as that is."""
    lab = fill(make_lab(tmp_path_factory.mktemp("forks")))
    for name in STAGES:
        fit(lab, name, f"--trainer.logger.init_args.run_name={name}")
    return lab


def run_id(lab: Lab, name: str) -> str:
    return str(lab.store.find(name).info.run_id)


def record(lab: Lab, run: str) -> dict[str, Any]:
    """Everything that two equal runs have in common, clocks aside."""
    client = lab.store.client
    keys = [key for key in client.get_run(run).data.metrics if not key.startswith(CLOCKS)]
    found: dict[str, Any] = {key: lab.points(key, run) for key in sorted(keys)}
    folder = Path(client.download_artifacts(run, ""))
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name.startswith(("answers/", "samples/", "windows/")):
            found[name] = path.read_text()
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    found["tables"] = json.loads(client.get_run(run).data.tags["mlflow.loggedArtifacts"])
    return found


def training_state(lab: Lab, run: str) -> dict[str, Any]:
    checkpoint = torch.load(last_checkpoint(lab.folder / "mlruns/checkpoints", run))
    log, evaluation = (checkpoint["callbacks"][n] for n in ("TrainingLog", "InLoopEvaluation"))
    for state, clock in ((log, "seconds"), (evaluation, "seconds"), (evaluation, "full_s")):
        del state[clock]
    assert checkpoint.pop("sft_lab")["run_id"] == run
    return {key: checkpoint[key] for key in checkpoint if key not in ("loops", "hparams_name")}


def assert_equal(found: Any, expected: Any, where: str = "") -> None:
    """Compare nested values, tensors to the last bit."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (mine, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(mine, other, f"{where}/{index}")
    else:
        assert found == expected, where


@pytest.mark.slow
@pytest.mark.parametrize(
    ("origin", "config"),
    [
        ("two@first", "three"),  # a stage with others behind it
        ("one@first", "three"),  # the last stage of its run
        ("three@middle", "three"),  # the second boundary, moments kept
        ("three_less_last@middle", "three"),
        ("three@middle", "three_less_last"),  # nothing is left to train
        ("two@first", "one"),
        ("one@first", "one"),
    ],
)
def test_a_fork_is_the_run_from_nothing(forks: Lab, origin: str, config: str) -> None:
    lab, name = forks, origin.partition("@")[0]
    old, expected = run_id(lab, name), run_id(lab, config)
    before = record(lab, old), lab.store.client.get_run(old).to_dictionary()
    mine = fit(lab, config, f"--from={origin}", "--trainer.logger.init_args.run_name=a fork")
    assert_equal(record(lab, mine), record(lab, expected))
    if not (config in ("one", "three_less_last") and name != config):
        assert_equal(training_state(lab, mine), training_state(lab, expected))
    assert lab.store.client.get_run(mine).data.tags[FORK_TAG] == f"{old}@{origin.split('@')[1]}"
    assert (record(lab, old), lab.store.client.get_run(old).to_dictionary()) == before
