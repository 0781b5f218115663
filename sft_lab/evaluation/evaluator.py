"""Evaluate a model on a suite, independently of Lightning."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import evaluating
from sft_lab.evaluation.item import Answer
from sft_lab.evaluation.references import answer_loss
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.metrics.score import Score
from sft_lab.terminal import counted


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: Optimizer steps taken.
        scores: All scores by metric key.
        abilities: Keys of the scores for which higher is better.
        marks: By score, the mark of each item whose mean is the score; scores that are not a mean
            over items, such as a perplexity, are absent.
        answers: All answers by benchmark, in the order of its file; the answers to an item follow
            each other.
        losses: Losses by metric key: held-out ``val_loss/<source>``, ``answer_loss/<source>``.
        num_items: Number of items used, by benchmark, for benchmarks measured in part.
        forms: Share of answers in the form that the prompt asks for, by ability.
    """

    step: int
    scores: Mapping[str, Score]
    abilities: frozenset[str]
    marks: Mapping[str, Mapping[str, float]]
    answers: Mapping[str, Sequence[Answer]]
    losses: Mapping[str, float] = field(default_factory=dict)
    num_items: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, Score] = field(default_factory=dict)


class Evaluator:
    """Measures a model on the benchmarks of a suite and leaves the model unchanged.

    Args:
        suite: The benchmarks and the engine.
        renderer: The run's tokenizer and chat template.
        dtype: Compute dtype of training; merged weights use it too.
        forward_context: Returns the context of forward passes, such as autocast.
        report: Called with a progress line as each part begins.
    """

    def __init__(
        self,
        suite: EvaluationSuite,
        renderer: Renderer,
        *,
        dtype: torch.dtype = torch.float32,
        forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.suite = suite
        self.renderer = renderer
        self.dtype = dtype
        self.forward_context = forward_context
        self.report = report

    def evaluate(
        self,
        model: Any,
        step: int,
        *,
        num_items: Mapping[str, int] | None = None,
        losses: Callable[[], Mapping[str, float]] | None = None,
    ) -> Evaluation:
        """Return the scores and answers of a model.

        Args:
            model: A causal language model of transformers, or PEFT's wrapper around one.
            step: Optimizer steps taken.
            num_items: Number of items to use, by benchmark; all by default.
            losses: Returns held-out losses; called while the evaluation weights are in place.
        """
        found: dict[str, float] = {}
        answers: dict[str, list[Answer]] = {}
        prompts = self.suite.prompts(self.renderer)
        partial = {
            name: count for name, count in (num_items or {}).items() if count < len(prompts[name])
        }
        engine = self.suite.engine
        references = self.suite.references(self.renderer)
        cut_reasoning = self.suite.cuts_reasoning(self.renderer)
        with (
            torch.no_grad(),
            evaluating(model),
            engine.serving(model, step, self.dtype) as weights,
        ):
            if losses is not None:
                self.report("held-out loss")
                with self.forward_context():
                    found |= losses()
            for name, benchmark in self.suite.benchmarks.items():
                indices = prompts[name].indices(partial.get(name))
                self.report(f"{name}: {counted(len(indices), 'item')}")
                engine.on_ended = self._counter(name, len(indices))
                items = benchmark.items()
                evaluated = EvaluatedModel(
                    weights,
                    engine,
                    self.renderer,
                    self.suite.decoding(name),
                    cut_reasoning=cut_reasoning,
                )
                with self.forward_context():
                    measured = benchmark.measure(
                        [items[index] for index in indices],
                        [prompts[name].token_ids[index] for index in indices],
                        evaluated,
                    )
                    answers[name] = [answer for found_here in measured for answer in found_here]
                    if name in references:
                        pairs = [references[name][index] for index in indices]
                        if (loss := answer_loss(pairs, evaluated)) is not None:
                            found[f"answer_loss/{self.suite.abilities[name]}"] = loss
        return self._evaluation(step, answers, found, partial)

    def _counter(self, name: str, num_items: int) -> Callable[[int], None]:
        return lambda ended: self.report(f"{name}: {ended:,}/{num_items:,}")

    def _evaluation(
        self,
        step: int,
        answers: Mapping[str, list[Answer]],
        losses: Mapping[str, float],
        num_items: Mapping[str, int],
    ) -> Evaluation:
        scores: dict[str, Score] = {}
        forms: dict[str, Score] = {}
        marks: dict[str, dict[str, float]] = {}
        abilities: set[str] = set()
        for name, benchmark in self.suite.benchmarks.items():
            found = answers[name]
            items, verdicts = [a.item for a in found], [a.verdict for a in found]
            for score_name, score in benchmark.scores(items, verdicts).items():
                key = f"{name}/{score_name}"
                scores[key] = score
                if benchmark.is_ability(score_name):
                    abilities.add(key)
                if (mark := benchmark.mark_of(score_name)) is not None:
                    marks[key] = item_marks(found, mark)
            ability = self.suite.abilities.get(name)
            if ability is not None and (form := benchmark.form_score(items, verdicts)) is not None:
                forms[ability] = form
        return Evaluation(
            step, scores, frozenset(abilities), marks, answers, losses, num_items, forms
        )


def item_marks(answers: Sequence[Answer], mark: str) -> dict[str, float]:
    """Return the mean mark of each item's answers; items that could not be graded are left out.

    Args:
        answers: Answers to one benchmark.
        mark: Name of the mark.
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if (value := answer.verdict.mark(mark)) is not None:
            values[answer.item.group_id].append(value)
    return {group: fmean(found) for group, found in values.items()}
