"""The switch of stages, watched by a callback from the command line."""

import json
from collections import Counter

import pytest
from tiny_lab import Lab

from sft_lab.training.schedule import stage_lr
from sft_lab.training.stage import Stage

WATCHER = '''
import json

from lightning import Callback


class Watch(Callback):
    """Writes what happens, in its order."""

    def __init__(self) -> None:
        self.events, self.sources = [], []

    def on_evaluation_start(self, trainer, pl_module):
        self.events.append(["evaluate", trainer.global_step])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sources += batch["source_ids"][:, 0].tolist()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameter = optimizer.param_groups[0]["params"][0]
        taken = int(optimizer.state[parameter]["step"]) if parameter in optimizer.state else 0
        lr = optimizer.param_groups[0]["lr"]
        self.events.append(["train", trainer.global_step, self.sources, taken, lr])
        self.sources = []

    def on_fit_end(self, trainer, pl_module):
        with open("events.json", "w") as file:
            json.dump(self.events, file)
'''


@pytest.mark.parametrize("hand_over", ["fresh", pytest.param("keep", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_stages_follow_each_other(lab: Lab, hand_over: str) -> None:
    lab.write("watcher.py", WATCHER)
    outcome = lab.fit(
        "--trainer.callbacks+=watcher.Watch", f"--data.stages.second.optimizer={hand_over}"
    )
    assert outcome.code == 0, outcome.err
    events = json.loads((lab.folder / "events.json").read_text())
    steps = [event for event in events if event[0] == "train"]

    # A boundary is measured once, before the first step of the next stage.
    train = [["train", step] for step in range(12)]
    assert [event[:2] for event in events] == [
        ["evaluate", 0],
        *train[:4],
        ["evaluate", 4],
        *train[4:5],
        ["evaluate", 5],
        *train[5:8],
        ["evaluate", 8],
        *train[8:],
        ["evaluate", 12],
    ]

    first, second = (
        Counter(s for event in part for s in event[2]) for part in (steps[:5], steps[5:])
    )
    assert first == {0: 20}  # math alone
    assert second == {0: 5, 1: 20}  # general, and a quarter of math

    # How many steps Adam's moments have seen before each step.
    expected = [*range(5), *range(7)] if hand_over == "fresh" else list(range(12))
    assert [event[3] for event in steps] == expected

    rates = [stage_lr(Stage({"math": 1}, lr=1e-2), step, 5) for step in range(5)]
    rates += [stage_lr(Stage({"general": 1}, lr=5e-3), step, 7) for step in range(7)]
    assert [event[4] for event in steps] == pytest.approx(rates)
