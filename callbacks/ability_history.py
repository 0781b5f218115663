"""Keeps every evaluation of a run and logs scores, forgetting, retention and backward transfer."""

from dataclasses import asdict, dataclass
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.metrics.forgetting import derived
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule, progress
from sft_lab.training.stage import trains


@dataclass(frozen=True)
class Measurement:
    """Scores by key after ``step`` optimizer steps; ``boundary`` is the stage that ended there."""

    step: int
    scores: dict[str, float]
    boundary: str | None


class AbilityHistory(Callback):
    """The history of all abilities from step 0 on.

    Args:
        suite: Gives the benchmarks, and for each the source that teaches it.

    Attributes:
        history: Every evaluation so far.
        best_marks: By score, the mark of each item at the evaluation where the score was best; not
            of scores that are no mean over items.
    """

    def __init__(self, suite: EvaluationSuite) -> None:
        self.suite = suite
        self.history: list[Measurement] = []
        self.best_marks: dict[str, dict[str, float]] = {}

    def on_evaluation_end(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation
    ) -> None:
        """Log an evaluation, and what it means beside those before it."""
        if not isinstance(pl_module, SFTModule):
            return
        metrics = dict(evaluation.losses)
        for key, score in evaluation.scores.items():
            metrics |= {key: score.value, f"{key}_low": score.low, f"{key}_high": score.high}
            metrics[f"{key}_n"] = float(score.n)
        step = evaluation.step
        if pl_module.schedule is not None and not any(m.step == step for m in self.history):
            schedule = pl_module.schedule
            scores = {
                key: score.value
                for key, score in evaluation.scores.items()
                if key in evaluation.abilities
            }
            self._keep_best(evaluation)
            ended = [scheduled.name for scheduled in schedule.stages if scheduled.end_step == step]
            self.history.append(Measurement(step, scores, ended[0] if ended else None))
            metrics |= derived(
                [m.scores for m in self.history],
                self._trained_at(schedule),
                not_averaged=[key for key in scores if not self.suite.is_averaged(key)],
            )
            metrics |= progress(schedule, step)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _keep_best(self, evaluation: Evaluation) -> None:
        for key in evaluation.abilities:
            value = evaluation.scores[key].value
            if all(value > m.scores[key] for m in self.history if key in m.scores):
                self.best_marks.pop(key, None)
                if key in evaluation.marks:
                    self.best_marks[key] = dict(evaluation.marks[key])

    def _trained_at(self, schedule: Schedule) -> dict[str, int]:
        """Return by score key where in the history the stage ended that first trained it."""
        found: dict[str, int] = {}
        for name, benchmark in self.suite.benchmarks.items():
            first = next((s for s in schedule.stages if trains(s.stage, benchmark.source)), None)
            if first is not None:
                for index, measurement in enumerate(self.history):
                    if measurement.step == first.end_step:
                        keys = (key for key in measurement.scores if key.startswith(f"{name}/"))
                        found |= dict.fromkeys(keys, index)
        return found

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [asdict(measurement) for measurement in self.history],
            "best_marks": self.best_marks,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Measurement(**measurement) for measurement in state_dict["history"]]
        self.best_marks = state_dict.get("best_marks", {})  # an earlier version kept none
