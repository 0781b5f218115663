"""A loss term and a hand-over policy in one file outside the package, named by a config."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lab import Lab, MakeLab

pytestmark = pytest.mark.slow

SEAMS = '''
import json

import torch
from lightning import Callback

from sft_lab.training.hand_over import HandOver
from sft_lab.training.loss import LossTerm


class NearBase(LossTerm):
    """Keep the model near its base by a KL term, and weight one source."""

    needs_base_logits = True

    def __init__(self, kl: float, source: str, weight: float = 1.0) -> None:
        self.kl, self.source, self.weight = kl, source, weight

    def weights(self, tokens):
        is_source = tokens.source_ids == tokens.sources.index(self.source)
        return torch.where(is_source, self.weight, 1.0)

    def penalty(self, tokens):
        base = tokens.base_logits.float().log_softmax(-1)
        now = tokens.logits.float().log_softmax(-1)
        return self.kl * (base.exp() * (base - now)).sum(-1)


class Shrink(HandOver):
    """Scale the trained adapters."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    @torch.no_grad()
    def apply(self, boundary):
        for name, parameter in boundary.model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter.mul_(self.factor)


class Watch(Callback):
    """Record the loss of every micro-batch; stop the run in the middle of a window."""

    def __init__(self, step: int = -1) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and batch_idx % 2 == 1:
            raise RuntimeError("stopped by the test")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with open("losses.jsonl", "a") as file:
            place = [trainer.current_epoch, batch_idx]
            file.write(json.dumps([place, outputs["loss"].item(), outputs["nll"].tolist()]) + "\\n")
'''
STAGES = """
    first: {mixture: {math: 1}, max_steps: 3, lr: 1e-2}
    second: {mixture: {general: 1, math: 1/4}, max_steps: 4, lr: 1e-2%s}
    third: {mixture: {general: 1}, max_steps: 4, lr: 1e-2%s}
"""
SHRINK = ", hand_over: {class_path: training_seams.Shrink, init_args: {factor: 0.5}}"
NEW = ", hand_over: {class_path: sft_lab.training.hand_over.NewAdapter}"
AVERAGE = ", hand_over: {class_path: sft_lab.training.hand_over.AverageStages}"
KEEP = (
    ", hand_over: {class_path: sft_lab.training.hand_over.Continue, init_args: {optimizer: keep}}"
)
LOSS = (
    ", loss: [{class_path: training_seams.NearBase, "
    "init_args: {kl: 0.5, source: math, weight: 2.0}}]"
)
CONFIGS = {
    "plain": ("", ""),
    "loss": (LOSS, ""),
    "shrink": (SHRINK, KEEP),
    "new": (NEW + LOSS, NEW),
    "average": ("", AVERAGE),
}
WATCH = "--trainer.callbacks+=training_seams.Watch"


def prepare(lab: Lab) -> Lab:
    # Evaluations at boundaries only: the others do not concern hand-overs.
    head = (lab.folder / "tiny.yaml").read_text().split("  stages:\n")[0]
    head = head.replace("every_n_steps: 4", "every_n_steps: null")
    lab.write("training_seams.py", SEAMS)
    for name, settings in CONFIGS.items():
        lab.write(f"{name}.yaml", f"{head}  stages:{STAGES % settings}")
    return lab


def fit(lab: Lab, name: str, *arguments: str) -> None:
    outcome = lab("fit", f"--config={name}.yaml", WATCH, *arguments)
    assert outcome.code == 0, outcome.err


def losses(lab: Lab) -> dict[str, Any]:
    """Return losses by micro-batch; one trained twice must have the same both times."""
    found: dict[str, Any] = {}
    for line in (lab.folder / "losses.jsonl").read_text().splitlines():
        place, *content = json.loads(line)
        assert found.setdefault(str(place), content) == content, place
    return found


def weights(lab: Lab, index: int = 0) -> dict[str, torch.Tensor]:
    path = lab.folder / "mlruns/checkpoints" / lab.runs[index].info.run_id / "last.ckpt"
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )


@pytest.fixture(scope="module")
def whole(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lab]:
    """Return a lab with a finished run for each config."""
    labs = {name: prepare(make_lab(tmp_path_factory.mktemp(name))) for name in CONFIGS}
    for name, lab in labs.items():
        fit(lab, name)
    return labs


def test_each_policy_and_term_acts_from_the_start_of_its_stage(whole: dict[str, Lab]) -> None:
    plain = list(losses(whole["plain"]).values())
    first_changed = {"loss": 6, "shrink": 6, "new": 6, "average": 14}  # 2 micro-batches a step
    for name, first in first_changed.items():
        found = list(losses(whole[name]).values())
        assert found[:first] == plain[:first], name
        assert found[first] != plain[first] or found[first + 2] != plain[first + 2], name
        assert not same(weights(whole[name]), weights(whole["plain"])), name
    # The reported loss excludes the term, so before the first changed step it is the same.
    assert losses(whole["loss"])["[1, 0]"][1] == losses(whole["plain"])["[1, 0]"][1]
    # The evaluation at a boundary measures the stage that ended.
    for name in CONFIGS:
        at_boundary = whole[name].points("val_loss/general")[3]
        assert at_boundary == whole["plain"].points("val_loss/general")[3], name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("loss", marks=pytest.mark.extended),  # `new` has the same term
        pytest.param("shrink", marks=pytest.mark.extended),
        "new",
        "average",
    ],
)
def test_a_run_stopped_after_a_hand_over_resumes_exactly(
    whole: dict[str, Lab], lab: Lab, name: str
) -> None:
    prepare(lab)
    for step, resumed in ((5, []), (9, ["--ckpt_path=last"])):
        with pytest.raises(RuntimeError, match="stopped by the test"):
            fit(lab, name, f"--trainer.callbacks.step={step}", *resumed)
    fit(lab, name, "--ckpt_path=last")
    assert losses(lab) == losses(whole[name])
    assert same(weights(lab), weights(whole[name]))
    assert lab.points("val_loss/general") == whole[name].points("val_loss/general")


@pytest.mark.parametrize(
    "name", [pytest.param("shrink", marks=pytest.mark.extended), "new", "average"]
)
def test_a_fork_at_a_boundary_repeats_the_run(whole: dict[str, Lab], name: str) -> None:
    lab = whole[name]
    origin = lab.runs[-1].info.run_id
    before = losses(lab)
    for stage in ("first", "second"):
        fit(lab, name, f"--from={origin}@{stage}")
        assert losses(lab) == before
        assert same(weights(lab), weights(lab, index=-1))
        run_id = lab.runs[0].info.run_id
        points = lab.points("val_loss/general", run_id)
        assert points == lab.points("val_loss/general", origin)


def test_the_last_adapters_are_scored_and_exported(whole: dict[str, Lab], tmp_path: Path) -> None:
    lab = whole["new"]
    run_id = lab.runs[-1].info.run_id
    path = f"--ckpt_path={lab.folder}/mlruns/checkpoints/{run_id}/last.ckpt"
    outcome = lab("validate", "--config=new.yaml", path)
    assert outcome.code == 0, outcome.err
    last = lab.points("val_loss/general", run_id)[11]
    assert lab.runs[0].data.metrics["val_loss/general"] == last
    for what in ("adapter", "merged"):
        outcome = lab("export", path, f"--out={tmp_path / what}", f"--what={what}")
        assert outcome.code == 0, outcome.err
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (12, 24)


def test_missing_stage_ends_of_a_parent_are_refused(whole: dict[str, Lab]) -> None:
    lab = whole["plain"]
    third = "--data.stages.third.hand_over=sft_lab.training.hand_over.AverageStages"
    run_id = lab.runs[-1].info.run_id
    outcome = lab("fit", "--config=plain.yaml", f"--from={run_id}@second", third)
    assert outcome.code == 2
    assert "data.stages.third.hand_over needs the weights at the end of stage 'first'" in (
        outcome.err
    )
