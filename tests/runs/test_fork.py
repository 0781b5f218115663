"""Forks, compared bit for bit with runs that started from the base."""

import json
import os
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import torch
from mlflow.entities import Metric
from tiny_lab import STOPPER, TINY, Lab, MakeLab

from sft_lab.runs.checkpoint import last_checkpoint, stage_checkpoint
from sft_lab.runs.evaluations import read_points
from sft_lab.runs.fork import FORK_TAG
from sft_lab.runs.parent_record import points_before

CONFIGS = Path(__file__).parents[2] / "configs"
RUN_NAME = "--trainer.logger.init_args.run_name"
FORK_NAME = f"{RUN_NAME}=a fork"
STOP = "--trainer.callbacks+=stopper.Stop"
CLOCKS = ("speed/", "time/")

FIRST = "    first: {mixture: {math: 1}, epochs: 1, lr: 1e-2}\n"
# 5 steps of math; then 7 of general and math, or 2 passes of 3 of general and 3 of math.
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
    """A lab with finished runs from the base, under their names in ``STAGES``."""
    lab = fill(make_lab(tmp_path_factory.mktemp("forks")))
    for name in ("one", "two", "three"):
        run_id(lab, name)
    return lab


def run_id(lab: Lab, name: str) -> str:
    """Return the id of the run of a config of ``STAGES`` from the base; train it if need be."""
    found = [run for run in lab.runs if run.info.run_name == name]
    return str(found[0].info.run_id) if found else fit(lab, name, f"{RUN_NAME}={name}")


def record(lab: Lab, run: str) -> dict[str, Any]:
    """Everything that two equal runs have in common, without clocks."""
    client = lab.store.client
    keys = [key for key in client.get_run(run).data.metrics if not key.startswith(CLOCKS)]
    found: dict[str, Any] = {key: lab.points(key, run) for key in sorted(keys)}
    folder = Path(client.download_artifacts(run, ""))
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name.startswith(("answers/", "evaluations/", "samples/", "windows/")):
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
        ("three@middle", "three"),  # the second boundary, moments kept
        # What follows is also the start of a fork below that is killed, forked or copied whole.
        pytest.param("two@first", "three", marks=pytest.mark.extended),
        pytest.param("one@first", "three", marks=pytest.mark.extended),
        pytest.param("three_less_last@middle", "three", marks=pytest.mark.extended),
        pytest.param("one@first", "one", marks=pytest.mark.extended),
    ],
)
def test_a_fork_equals_the_run_from_the_base(forks: Lab, origin: str, config: str) -> None:
    lab, (name, stage) = forks, origin.split("@")
    old, expected = run_id(lab, name), run_id(lab, config)
    before = record(lab, old), lab.store.client.get_run(old).to_dictionary()
    mine = fit(lab, config, f"--from={origin}", FORK_NAME)
    assert_equal(record(lab, mine), record(lab, expected))
    assert_equal(training_state(lab, mine), training_state(lab, expected))
    assert lab.store.client.get_run(mine).data.tags[FORK_TAG] == f"{old}@{stage}"
    assert (record(lab, old), lab.store.client.get_run(old).to_dictionary()) == before
    outcome = lab("compare", mine, expected, "--json")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("origin", "config"),
    [
        ("two@first", "one"),
        pytest.param("three@middle", "three_less_last", marks=pytest.mark.extended),
    ],
)
def test_a_fork_without_further_stages_copies_everything(
    forks: Lab, origin: str, config: str
) -> None:
    mine, expected = fit(forks, config, f"--from={origin}", FORK_NAME), run_id(forks, config)
    assert_equal(record(forks, mine), record(forks, expected))
    weights = (training_state(forks, run)["state_dict"] for run in (mine, expected))
    assert_equal(*weights)


@pytest.mark.slow
def test_a_run_can_be_forked_from_a_fork(forks: Lab) -> None:
    fork = fit(forks, "three", "--from=two@first", FORK_NAME)
    for stage in ("first", "middle"):
        mine = fit(forks, "three", f"--from={fork[:12]}@{stage}", FORK_NAME)
        assert_equal(record(forks, mine), record(forks, run_id(forks, "three")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        "sft_lab.runs.logger.RunLogger.log_points",
        pytest.param("sft_lab.runs.client.StoreClient.log_artifacts", marks=pytest.mark.extended),
        "sft_lab.runs.parent_record.link_or_copy",  # everything is copied but the last checkpoint
        "sft_lab.callbacks.stage_scheduler.StageScheduler.on_train_start",
    ],
)
def test_a_fork_that_fails_early_still_starts_from_its_stage(
    forks: Lab, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            fit(forks, "three", "--from=two@first", FORK_NAME)
    stopped = forks.runs[0].info.run_id
    both = forks("fit", "--config=three.yaml", "--from=two@first", "--ckpt_path=last")
    assert both.code == 2
    assert "--from two@first starts a new run, --ckpt_path last resumes one" in both.err
    # It does not train the first stage again, which would go through step 4.
    never = (STOP, "--trainer.callbacks.step=4")
    assert fit(forks, "three", *never, "--ckpt_path=last") == stopped
    assert_equal(record(forks, stopped), record(forks, run_id(forks, "three")))


@pytest.mark.extended  # a fork is stopped above, a run killed in test_kill_and_resume
@pytest.mark.parametrize("step", [5, 9])
def test_a_killed_fork_resumes_exactly(forks: Lab, step: int) -> None:
    command = [sys.executable, "-m", "sft_lab", "fit", "--config=three.yaml", "--from=one@first"]
    kill = [STOP, f"--trainer.callbacks.step={step}", f"--trainer.callbacks.signal={SIGKILL}"]
    environment = {**os.environ, "SFT_LAB_WORLD": str(forks.world)}
    environment["PYTHONPATH"] = os.pathsep.join([".", environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, *kill, FORK_NAME, "--trainer.log_every_n_steps=2"],
        cwd=forks.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -SIGKILL, done.stderr
    killed = forks.runs[0]
    assert killed.info.status == "KILLED"
    assert fit(forks, "three", "--ckpt_path=last") == killed.info.run_id
    assert_equal(record(forks, killed.info.run_id), record(forks, run_id(forks, "three")))


def test_a_fork_measures_as_many_items_as_its_parent(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft_lab.evaluation.budget.MIN_ITEMS", 1)
    fill(lab)
    origin = fit(lab, "one", "--evaluation.budget=0.001%")
    monkeypatch.setattr("sft_lab.evaluation.budget.MIN_ITEMS", 3)  # were they counted again
    mine = fit(lab, "three", "--evaluation.budget=0.001%", f"--from={origin}@first")
    counts = {0: 4, 4: 1, 5: 4, 8: 1, 11: 4, 12: 1, 14: 4}
    assert lab.counts("world_math/format_free", mine) == counts
    assert [p.step for p in read_points(lab.store, mine) if p.partial] == [4, 8, 12]
    assert lab.store.client.get_run(mine).data.params["items_between.world_math"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "origin", "extra", "said"),
    [
        ("three", "two", "", "--from: expected RUN@STAGE, such as"),
        ("three", "two@", "", "got 'two@'"),
        ("three", "four@first", "", "no run 'four' in sqlite:///mlruns/mlflow.db"),
        ("three", "two@third", "", "(two) has no stage 'third'; it has first, second."),
        ("three", "two@second", "", "data.stages: --from two@second: run"),
        ("three", "two@second", "", "trained with first, second up to there, the config says fir"),
        (
            "three",
            "two@first",
            "--data.stages.first.lr=1e-3",
            "has trained with 0.01 up to there, the config says 0.001. Up to the end of stage "
            "'first' both must be the same: set data.stages.first.lr to 0.01, or leave --from out",
        ),
        ("three", "two@first", "--seed_everything=1", "seed_everything: --from two@first: run"),
        ("three", "two@first", "--model.lora.r=8", "model.lora.r: --from two@first: run"),
        ("three", "two@first", "--evaluation.every_n_steps=3", "evaluation.every_n_steps: --from"),
        ("three", "two@first", "--data.micro_batch_size=4", "data.micro_batch_size: --from"),
        ("three", "two@first", "--checkpoint.dirpath=elsewhere", "there is no elsewhere/"),
    ],
)
def test_an_impossible_fork_is_refused(
    forks: Lab, config: str, origin: str, extra: str, said: str
) -> None:
    before = len(forks.runs)
    arguments = ["fit", f"--config={config}.yaml", f"--from={origin}", *filter(None, [extra])]
    outcome = forks(*arguments)
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert len(forks.runs) == before


@pytest.mark.slow
def test_a_stage_that_a_run_has_not_ended_cannot_be_forked_from(forks: Lab) -> None:
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(forks, "two", STOP, "--trainer.callbacks.step=3", "--checkpoint.keep_stages=false")
    stopped = forks.runs[0].info.run_id
    refused = forks("fit", "--config=three.yaml", f"--from={stopped}@first")
    assert refused.code == 2
    assert "has not reached the end of stage 'first', its last point is at step 2." in refused.err
    fit(forks, "two", "--ckpt_path=last", "--checkpoint.keep_stages=false")
    refused = forks("fit", "--config=three.yaml", f"--from={stopped}@first")
    assert refused.code == 2
    assert "has kept no checkpoint of the end of stage 'first': there is no" in refused.err


def test_only_fit_starts_from_a_stage(lab: Lab) -> None:
    for command in ("validate", "test"):
        refused = lab(command, "--config=tiny.yaml", "--from=two@first")
        assert refused.code == 2
        assert f"belongs to fit, not to {command}" in refused.err


def test_a_plan_is_of_a_whole_run(lab: Lab) -> None:
    refused = lab.fit("--plan", "--from=two@first")
    assert refused.code == 2
    assert "--plan describes a whole run; leave out --from." in refused.err


def test_the_help_of_fit_lists_from(lab: Lab) -> None:
    assert "--from RUN@STAGE" in lab("fit", "--help").out
    assert "--from RUN@STAGE" in " ".join(lab("--help").out.split())


@pytest.mark.slow
def test_a_kept_checkpoint_is_scored_but_not_resumed(forks: Lab) -> None:
    origin = run_id(forks, "two")
    kept = stage_checkpoint(Path("mlruns/checkpoints"), origin, "first")
    refused = forks("fit", "--config=two.yaml", f"--ckpt_path={kept}")
    assert refused.code == 2
    assert f"Start one by --from {origin[:8]}@first, or resume from last.ckpt." in refused.err
    outcome = forks("validate", "--config=two.yaml", f"--ckpt_path={kept}")
    assert outcome.code == 0, outcome.err
    metrics = forks.runs[0].data.metrics
    assert metrics["val_loss/math"] == forks.points("val_loss/math", origin)[5]


def test_points_up_to_the_boundary_are_copied() -> None:
    history = {
        "progress/stage": [Metric("progress/stage", 0.0, 10 + step, step) for step in (0, 5)],
        "lr": [Metric("lr", 0.1 * step, 10 + step, step) for step in (2, 5, 6)],
    }
    points = points_before(history, step=5, stage_index=1)
    # The end of a run counts to its last stage, a boundary to the stage after it.
    assert [(p.key, p.step, p.value, p.timestamp) for p in points] == [
        ("progress/stage", 0, 0.0, 10),
        ("progress/stage", 5, 1.0, 15),
        ("lr", 2, 0.2, 12),
        ("lr", 5, 0.5, 15),
    ]
