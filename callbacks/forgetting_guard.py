"""Raise a stage's replay when an ability is forgotten, and lower it when there is room."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.callbacks.stage_scheduler import StageScheduler
from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.runs.logger import run_logger
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.guard import Guard
from sft_lab.training.guard_rule import Rung, assess, next_rung
from sft_lab.training.module import SFTModule
from sft_lab.training.replan import PLAN_CHANGES, PlanChange
from sft_lab.training.schedule import ScheduledStage


class ForgettingGuard(Callback):
    """Decide at every evaluation inside the guarded stage which shares to replay from then on.

    An evaluation at step s comes before step s is trained, when the batches of its pass have
    already been requested. So the guarded stage's passes are cut after step s, and a decision at s
    takes effect from step s + 1 on. The checkpoint written before the evaluation does not include
    it; the next one, at the cut, does. A resumed run restores its decisions before any batch is
    requested, so this callback must come before ``StageScheduler``.

    Logs ``guard_share/<source>``, the share from then on, and ``guard_limit/<benchmark>_<score>``,
    the score below which an ability counts as forgotten, and writes ``guard.json``, a record per
    decision.

    Args:
        guard: The settings.
        suite: The benchmarks.
        history: Keeps the marks of selection items at each score's best boundary, also in
            checkpoints.
        scheduler: Follows every new plan.
    """

    def __init__(
        self,
        guard: Guard,
        suite: EvaluationSuite,
        history: AbilityHistory,
        scheduler: StageScheduler,
    ) -> None:
        self.guard = guard
        self.suite = suite
        self.history = history
        self.scheduler = scheduler
        self.sources = guard.sources(suite)
        self.records: list[dict[str, Any]] = []
        self.changes: list[PlanChange] = []
        self.rungs: dict[str, Rung] = {}
        self._data: StagedDataModule | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, unknown to its types
        if stage != "fit" or not isinstance(data, StagedDataModule):
            return
        self._data = data
        settings = data.stages[self.guard.stage]
        self.rungs = {source: Rung(self.guard.start(source, settings)) for source in self.sources}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file(trainer)  # a fork starts with the decisions of its parent

    def on_evaluation_end(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation
    ) -> None:
        """Decide on the shares from the next step on."""
        if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
            return
        step = trainer.global_step
        stages = pl_module.schedule.stages
        scheduled = next(found for found in stages if found.name == self.guard.stage)
        if step == scheduled.first_step:
            self._log(trainer, {})
        # Before the stage's last step there is nothing left to decide.
        elif scheduled.first_step < step < scheduled.end_step - 1:
            self._decide(trainer, scheduled, evaluation)

    def _decide(self, trainer: Trainer, scheduled: ScheduledStage, evaluation: Evaluation) -> None:
        assert self._data is not None  # a schedule implies it
        step = trainer.global_step
        assessed = {key: self._assess(key, evaluation) for key in self.guard.min_retention}
        abilities = {key: found for key, found in assessed.items() if found is not None}
        before, top = self.rungs, len(self.guard.shares) - 1
        self.rungs = {
            source: next_rung(
                before[source],
                [abilities[key]["standing"] for key in keys if key in abilities],
                top,
            )
            for source, keys in self.sources.items()
        }
        places = {s: rung.index for s, rung in self.rungs.items() if rung.index != before[s].index}
        if places:
            change = self.guard.change(step + 1, places, self.suite)
            self._data.replan(change)
            self.changes.append(change)
            self.scheduler.follow_plan()
        self.records.append(
            {
                "step": step,
                "abilities": abilities,
                "shares": {
                    source: {
                        "from": str(self.guard.shares[before[source].index]),
                        "to": str(self.guard.shares[rung.index]),
                        "lowest": str(self.guard.shares[rung.floor]),
                    }
                    for source, rung in self.rungs.items()
                },
                "places": places,
                "rows_left": self._rows_left(step + 1 - scheduled.first_step),
                "steps_left": self._steps_left(step + 1),
            }
        )
        limits = {key.replace("/", "_"): a["limit"] for key, a in abilities.items()}
        self._log(trainer, {f"guard_limit/{key}": limit for key, limit in limits.items()})

    def _assess(self, key: str, evaluation: Evaluation) -> dict[str, Any] | None:
        """Return the assessment of an ability; None without scores above 0 to compare with."""
        best = self.history.best_marks.get(key)
        now = evaluation.selection_marks.get(key)
        if best is None or now is None:
            return None
        kept = self.guard.min_retention[key]
        answers = evaluation.answers[key.partition("/")[0]]
        clusters = {answer.item.group_id: answer.item.cluster_id for answer in answers}
        found = assess(best, now, kept, self.guard.room, clusters)
        if found is None:
            return None
        return {
            "split": "selection",
            **asdict(evaluation.selection[key]),
            "best": found.best,
            "limit": kept * found.best,
            "margin": {
                "value": found.margin.value,
                "low": found.margin.low,
                "high": found.margin.high,
                "n": found.margin.n,
            },
            "standing": found.standing,
        }

    def _rows_left(self, step: int) -> dict[str, int]:
        assert self._data is not None
        (module,) = (m for m in self._data.stage_modules if m.plan.name == self.guard.stage)
        rows = (ref for window in module.plan.windows[step:] for refs in window for ref in refs)
        return dict(sorted(Counter(ref.source for ref in rows).items()))

    def _steps_left(self, step: int) -> int:
        assert self.scheduler.schedule is not None
        stages = self.scheduler.schedule.stages
        return next(found.end_step for found in stages if found.name == self.guard.stage) - step

    def _log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        shares = {source: self.guard.shares[rung.index] for source, rung in self.rungs.items()}
        metrics |= {f"guard_share/{source}": float(s.amount) for source, s in shares.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self._file(trainer)

    def _file(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        settings = asdict(self.guard)
        settings["shares"] = [share.written for share in self.guard.shares]
        content = {"guard": settings, "decisions": self.records}
        logger = run_logger(trainer)
        logger.experiment.log_text(logger.run_id, json.dumps(content, indent=2), "guard.json")

    def decision_lines(self, step: int) -> list[str]:
        """Describe the decisions at a step: a line per share that changed or cannot rise.

        Args:
            step: Optimizer steps taken.
        """
        return [
            line
            for record in self.records
            if record["step"] == step
            for source in self.sources
            for line in self._line(record, source)
        ]

    def _line(self, record: dict[str, Any], source: str) -> list[str]:
        found = {
            k: record["abilities"][k] for k in self.sources[source] if k in record["abilities"]
        }
        below = [key for key, ability in found.items() if ability["standing"] == "below"]
        share = record["shares"][source]
        if source in record["places"]:
            what = f"{source} from {share['from']} to {share['to']}"
        elif below:
            what = f"{source} stays at {share['to']}, the highest share"
        else:
            return []
        reasons = [self._reason(key, found[key]) for key in below or found]
        return [f"guard at step {record['step']}: {what}: {', '.join(reasons)}"]

    def _reason(self, key: str, ability: dict[str, Any]) -> str:
        margin = ability["margin"]
        how = "below" if ability["standing"] == "below" else "well above"
        chance = ", which may be chance" if how == "below" and margin["high"] >= 0 else ""
        value, low, high, limit = (
            self.suite.shown(key, part)
            for part in (margin["value"], margin["low"], margin["high"], ability["limit"])
        )
        return f"{key} {how} {limit} by {value.removeprefix('-')} [{low}, {high}]{chance}"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "records": self.records,
            PLAN_CHANGES: [asdict(change) for change in self.changes],
            "rungs": {source: asdict(rung) for source, rung in self.rungs.items()},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run without decisions yet may resume under another guard.
        if self._data is None or not state_dict["records"]:
            return
        self.records = state_dict["records"]
        self.rungs = {source: Rung(**rung) for source, rung in state_dict["rungs"].items()}
        self.changes = [PlanChange(**change) for change in state_dict[PLAN_CHANGES]]
        self._data.restore_plans(self.changes)
        self.scheduler.follow_plan()
