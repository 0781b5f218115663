"""Answers and evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass

from sft_lab.evaluation.benchmark import Item, Verdict
from sft_lab.metrics.score import Score


@dataclass(frozen=True)
class Answer:
    """One item of an evaluation: what was asked, what came, and the verdict."""

    item: Item
    completion: str
    verdict: Verdict


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        metrics: Everything measured, by metric key: scores with intervals and counts, losses.
        scores: The scores of which more is better, by metric key.
        answers: Every item by benchmark, in the order of its file; samples of an item follow each
            other.
    """

    metrics: Mapping[str, float]
    scores: Mapping[str, Score]
    answers: Mapping[str, list[Answer]]
