"""Keeps the evaluations of a run and logs scores, abilities and what training has done to them."""

from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.metrics.forgetting import best_boundary
from sft_lab.runs.evaluations import Point, Tracked, ability_metrics, selection_history, strict_key
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule, ScheduledStage, progress
from sft_lab.training.stage import trains


class AbilityHistory(Callback):
    """Logs every evaluation: scores, losses, and abilities beside their earlier evaluations.

    The keys are ``ability/<source>``, ``form/<source>``, ``answer_loss/<source>``,
    ``change_from_base/<source>``, ``forgetting/<source>``, ``form_forgetting/<source>``,
    ``retention/<source>``, ``backward_transfer/<source>`` and ``average/score``, as defined in
    ``sft_lab.metrics.forgetting``.

    Every score of the selection items is ``selection/<benchmark>_<score>``.

    Args:
        suite: The benchmarks, and the source that teaches each.

    Attributes:
        history: Every evaluation so far, in order of steps.
        changes: The last one's ability metrics, by key.
        best_marks: By score, the mark of each selection item at the best evaluation at a stage
            boundary; without scores that are not a mean over items.
    """

    def __init__(self, suite: EvaluationSuite) -> None:
        self.suite = suite
        self.history: list[Point] = []
        self.changes: dict[str, float] = {}
        self.best_marks: dict[str, dict[str, float]] = {}

    def on_evaluation_end(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation
    ) -> None:
        """Log an evaluation, and what it means beside those before it."""
        metrics = {key: score.value for key, score in evaluation.scores.items()}
        metrics |= {
            f"selection/{key.replace('/', '_')}": score.value
            for key, score in evaluation.selection.items()
        }
        metrics |= evaluation.losses
        schedule = pl_module.schedule if isinstance(pl_module, SFTModule) else None
        point = point_of(evaluation, schedule)
        if schedule is None:
            metrics |= ability_metrics([point], self._tracked([]))
        elif all(past.step != point.step for past in self.history):
            self._keep_best(point, evaluation)
            self.history.append(point)
            metrics |= self.refresh(schedule)
            metrics |= progress(schedule, point.step)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=evaluation.step)

    def refresh(self, schedule: Schedule) -> dict[str, float]:
        """Return ``changes``, computed from the history, which may have come from a checkpoint."""
        self.changes = ability_metrics(self.history, self._tracked(schedule.stages))
        return self.changes

    def _keep_best(self, point: Point, evaluation: Evaluation) -> None:
        """Keep the marks of a boundary that is a score's best so far."""
        for key, marks in evaluation.selection_marks.items():
            best = best_boundary(selection_history(self.history, key), point.step)
            now = point.selection.get(key)
            if point.is_boundary and now and (best is None or now.value > best.score.value):
                self.best_marks[key] = dict(marks)

    def _tracked(self, stages: Sequence[ScheduledStage]) -> dict[str, Tracked]:
        tracked = {}
        for name, key in self.suite.primary.items():
            benchmark = self.suite.benchmarks[key.partition("/")[0]]
            ends = (s.end_step for s in stages if trains(s.stage, benchmark.source))
            strict = strict_key(key, benchmark.strict_score)
            tracked[name] = Tracked(key, next(ends, None), benchmark.chance, strict)
        return tracked

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [point.to_dict() for point in self.history],
            "best_marks": self.best_marks,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Point.from_dict(point, "the checkpoint") for point in state_dict["history"]]
        self.best_marks = state_dict["best_marks"]


def point_of(evaluation: Evaluation, schedule: Schedule | None) -> Point:
    """Return an evaluation as the run keeps it.

    Args:
        evaluation: The evaluation.
        schedule: The run's stages; None where nothing is trained.
    """
    stages = schedule.stages if schedule else []
    ended = (scheduled.name for scheduled in stages if scheduled.end_step == evaluation.step)
    return Point(
        evaluation.step,
        next(ended, None),
        evaluation.scores,
        evaluation.losses,
        evaluation.num_items,
        evaluation.forms,
        evaluation.reported,
        evaluation.selection,
    )
