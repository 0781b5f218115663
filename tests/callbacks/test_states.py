"""The lab's callbacks as a group: built, saved, restored."""

from typing import Any

import torch
from lightning import Callback

from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.callbacks.in_loop_evaluation import InLoopEvaluation
from sft_lab.callbacks.run_checkpoint import RunCheckpoint
from sft_lab.callbacks.training_log import TrainingLog
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.metrics.score import Score
from sft_lab.runs.evaluations import Point


def group() -> dict[str, Any]:
    suite = EvaluationSuite({})
    evaluation = InLoopEvaluation(suite)
    return {
        "evaluation": evaluation,
        "log": TrainingLog(["math", "code"], evaluation),
        "history": AbilityHistory(suite),
        "checkpoint": RunCheckpoint(),
    }


def test_callbacks_are_restored_from_a_file(tmp_path: Any) -> None:
    saved = group()
    saved["evaluation"].evaluated_step = 40
    saved["evaluation"].seconds = 2.5
    saved["evaluation"].items_between = {"math": 40}
    saved["log"].nll += torch.tensor([1.5, 0.25])
    saved["log"].target_tokens += torch.tensor([3, 1])
    saved["history"].history = [
        Point(0, None, {"m/accuracy": Score(0.0, 0.0, 0.2, 8)}),
        Point(40, "a", {"m/accuracy": Score(0.5, 0.2, 0.8, 4)}, {"val_loss/math": 1.0}, {"m": 4}),
    ]
    saved["history"].best_marks = {"math": {"m1": 1.0}}
    states = {name: callback.state_dict() for name, callback in saved.items()}
    torch.save(states, tmp_path / "states")
    restored = group()
    for name, state in torch.load(tmp_path / "states", weights_only=True).items():
        callback: Callback = restored[name]
        callback.load_state_dict(state)
    assert restored["evaluation"].evaluated_step == 40
    assert restored["evaluation"].seconds == 2.5
    assert restored["evaluation"].items_between == {"math": 40}
    assert restored["log"].nll.tolist() == [1.5, 0.25]
    assert restored["log"].target_tokens.tolist() == [3, 1]
    assert restored["history"].history == saved["history"].history
    assert restored["history"].best_marks == {"math": {"m1": 1.0}}
