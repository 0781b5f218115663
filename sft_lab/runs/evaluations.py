"""A run's evaluations, one file each: ``evaluations/step_000400.json``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.evaluation.item import Part
from sft_lab.metrics.forgetting import Assessed, changes
from sft_lab.metrics.score import Score
from sft_lab.runs.store import RunStore

EVALUATIONS = "evaluations"
SCHEMA = 2
"""Version of the file; a change that an older version could not read counts it up."""


@dataclass(frozen=True)
class Point:
    """One evaluation of a run.

    Attributes:
        step: Optimizer steps taken.
        after: The stage that ended there, or None.
        scores: Reported scores, by metric key.
        losses: Losses by metric key: ``val_loss/<source>`` and ``answer_loss/<source>``.
        partial: Number of reported items that were measured, by benchmark, where not all were.
        forms: Share of reported answers in the form that the prompt asks for, by ability.
        reported: The part of the items that scores, forms and answer losses come from.
        selection: Scores of the selection items, by metric key; always of all of them.
    """

    step: int
    after: str | None
    scores: Mapping[str, Score]
    losses: Mapping[str, float] = field(default_factory=dict)
    partial: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, Score] = field(default_factory=dict)
    reported: Part = "all"
    selection: Mapping[str, Score] = field(default_factory=dict)

    @property
    def is_boundary(self) -> bool:
        """Whether it was measured before training or where a stage ended."""
        return self.step == 0 or self.after is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as plain values."""
        return {
            "schema": SCHEMA,
            "step": self.step,
            "stage_ended": self.after,
            "split": self.reported,
            "scores": _plain(self.scores, self.reported),
            "selection": _plain(self.selection, "selection"),
            "losses": dict(self.losses),
            "partial": dict(self.partial),
            "forms": _plain(self.forms, self.reported),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], whose: str) -> "Point":
        """Read an evaluation.

        Args:
            content: What ``to_dict`` returned.
            whose: The run, for errors.

        Raises:
            RequestError: If another version of the lab wrote it.
        """
        if content.get("schema") != SCHEMA:
            raise RequestError(
                f"{whose}: its evaluations were written by another version of sft_lab; read them "
                f"with that one (this version reads schema {SCHEMA})."
            )
        return cls(
            step=content["step"],
            after=content["stage_ended"],
            scores=_scores(content["scores"]),
            losses=content["losses"],
            partial=content["partial"],
            forms=_scores(content["forms"]),
            reported=content["split"],
            selection=_scores(content["selection"]),
        )


def _plain(scores: Mapping[str, Score], part: Part) -> dict[str, Any]:
    return {key: {**asdict(score), "split": part} for key, score in scores.items()}


def _scores(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    return {
        key: Score(**{name: value for name, value in score.items() if name != "split"})
        for key, score in content.items()
    }


def evaluation_path(step: int) -> str:
    """Return where a run keeps the evaluation at a step.

    >>> evaluation_path(400)
    'evaluations/step_000400.json'
    """
    return f"{EVALUATIONS}/step_{step:06d}.json"


def evaluated_steps(store: RunStore, run_id: str) -> list[int]:
    """Return the steps at which a run has been evaluated, in order."""
    files = (Path(file.path) for file in store.client.list_artifacts(run_id, EVALUATIONS))
    return sorted(int(file.stem.removeprefix("step_")) for file in files if file.suffix == ".json")


def read_points(store: RunStore, run_id: str) -> tuple[Point, ...]:
    """Return a run's evaluations in order of steps; none if it was stopped before the first.

    Raises:
        RequestError: If another version of the lab wrote them.
    """
    return tuple(
        store.artifact(
            run_id,
            evaluation_path(step),
            lambda text: Point.from_dict(json.loads(text), f"run {run_id[:8]}"),
        )
        for step in evaluated_steps(store, run_id)
    )


@dataclass(frozen=True)
class Tracked:
    """The settings that decide whether an ability can be forgotten.

    Attributes:
        key: Metric key of its primary score.
        trained_at: Optimizer steps at the end of the first stage that trains it, or None.
        chance: The score of guessing.
        strict_key: Metric key of the score that also requires the asked form, or None.
    """

    key: str
    trained_at: int | None
    chance: float
    strict_key: str | None = None

    def changes(self, points: Sequence[Point]) -> dict[str, float]:
        """Return the changes of the ability at the last of a run's evaluations.

        Returns:
            ``forgetting``, ``retention``, ``backward_transfer`` and ``change_from_base`` of the
            primary score, and ``form_forgetting``, the forgetting of the strict one, as far as they
            have values; see ``sft_lab.metrics.forgetting``.
        """
        found = self._changes(points, self.key)
        strict = {} if self.strict_key is None else self._changes(points, self.strict_key)
        if "forgetting" in strict:
            found["form_forgetting"] = strict["forgetting"]
        return found

    def _changes(self, points: Sequence[Point], key: str) -> dict[str, float]:
        if key not in points[-1].scores:
            return {}
        return changes(history(points, key), self.trained_at, self.chance)


def strict_key(key: str, strict_score: str | None) -> str | None:
    """Return the metric key of the strict score of the same benchmark, if it has one.

    >>> strict_key("gsm8k/flexible", "strict")
    'gsm8k/strict'
    """
    return None if strict_score is None else f"{key.partition('/')[0]}/{strict_score}"


def selection_history(points: Sequence[Point], key: str) -> list[Assessed]:
    """Return the history of a score on the selection items, which decisions are based on."""
    return [
        Assessed(point.step, point.selection[key], point.is_boundary)
        for point in points
        if key in point.selection
    ]


def history(points: Sequence[Point], key: str) -> list[Assessed]:
    """Return the history of a reported score; evaluations without it are left out."""
    benchmark = key.partition("/")[0]
    return [
        Assessed(point.step, point.scores[key], point.is_boundary, benchmark not in point.partial)
        for point in points
        if key in point.scores
    ]


def ability_metrics(points: Sequence[Point], abilities: Mapping[str, Tracked]) -> dict[str, float]:
    """Return the ability metrics of the last evaluation, by metric key.

    Args:
        points: A run's evaluations in order of steps.
        abilities: By name, that is, by the source that teaches it.

    Returns:
        ``ability/<name>``, ``form/<name>`` and the changes of ``Tracked.changes``, such as
        ``forgetting/<name>``, as far as they have values, and ``average/score``, the mean over
        abilities: absent if one has no score now, since a mean over fewer does not compare.
    """
    last = points[-1]
    metrics: dict[str, float] = {}
    for name, ability in abilities.items():
        if ability.key in last.scores:
            metrics[f"ability/{name}"] = last.scores[ability.key].value
    if metrics and len(metrics) == len(abilities):
        metrics["average/score"] = fmean(metrics.values())
    for name, ability in abilities.items():
        if name in last.forms:
            metrics[f"form/{name}"] = last.forms[name].value
        found = ability.changes(points)
        metrics |= {f"{change}/{name}": value for change, value in found.items()}
    return metrics
