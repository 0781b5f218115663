"""Evaluate a model on a suite, independently of Lightning."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch

from sft_lab import distributed
from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import evaluating
from sft_lab.evaluation.item import Answer, Item, Part, Verdict
from sft_lab.evaluation.references import answer_loss
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.metrics.score import Score
from sft_lab.terminal import counted


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: Optimizer steps taken.
        scores: All reported scores by metric key: of report items, or of all without a split.
        abilities: Keys of the scores for which higher is better.
        answers: All answers by benchmark, in the order of its file; the answers to an item follow
            each other.
        losses: Losses by metric key: held-out ``val_loss/<source>``, ``answer_loss/<source>``.
        num_items: Number of reported items, by benchmark, for benchmarks measured in part.
        forms: Share of reported answers in the form that the prompt asks for, by ability.
        reported: The part of the items that reported scores, forms and answer losses come from.
        selection: All scores of the selection items, by metric key; none without a split.
        selection_marks: By score, the mark of each selection item whose mean is the score; scores
            that are not a mean over items, such as a perplexity, are absent.
    """

    step: int
    scores: Mapping[str, Score]
    abilities: frozenset[str]
    answers: Mapping[str, Sequence[Answer]]
    losses: Mapping[str, float] = field(default_factory=dict)
    num_items: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, Score] = field(default_factory=dict)
    reported: Part = "all"
    selection: Mapping[str, Score] = field(default_factory=dict)
    selection_marks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


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
        selection: Collection[str] | None = None,
        losses: Callable[[], Mapping[str, float]] | None = None,
    ) -> Evaluation:
        """Return the scores and answers of a model.

        Args:
            model: A causal language model of transformers, or PEFT's wrapper around one.
            step: Optimizer steps taken.
            num_items: Number of reported items to use, by benchmark; all by default.
            selection: Benchmarks whose selection items to use; all by default.
            losses: Returns held-out losses; called while the evaluation weights are in place.
        """
        found: dict[str, float] = {}
        answers: dict[str, list[Answer]] = {}
        prompts = self.suite.prompts(self.renderer)
        splits = {name: self.suite.split_of(name) for name in prompts}
        partial = {
            name: count
            for name, count in (num_items or {}).items()
            if count < len(splits[name].indices["report"])
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
                split = splits[name]
                reported = prompts[name].indices(partial.get(name), split.indices["report"])
                chosen = (
                    split.indices["selection"] if selection is None or name in selection else []
                )
                indices = sorted([*reported, *chosen])
                self.report(f"{name}: {counted(len(indices), 'item')}")
                items = benchmark.items()
                evaluated = EvaluatedModel(
                    weights,
                    engine,
                    self.renderer,
                    self.suite.decoding(name),
                    cut_reasoning=cut_reasoning,
                )
                with self.forward_context():
                    measured = self._measured(
                        name,
                        [items[index] for index in indices],
                        [prompts[name].token_ids[index] for index in indices],
                        evaluated,
                    )
                    answers[name] = [
                        replace(answer, part=split.part(answer.item))
                        for found_here in measured
                        for answer in found_here
                    ]
                    if name in references:
                        pairs = [references[name][index] for index in reported]
                        if (loss := answer_loss(pairs, evaluated)) is not None:
                            found[f"answer_loss/{self.suite.abilities[name]}"] = loss
        of_report = {name: _of(given, "all", "report") for name, given in answers.items()}
        of_selection = {name: _of(given, "selection") for name, given in answers.items()}
        return Evaluation(
            step,
            self._scores(of_report),
            frozenset(
                f"{name}/{score_name}"
                for name, benchmark in self.suite.benchmarks.items()
                for score_name in benchmark.score_names
                if benchmark.is_ability(score_name)
            ),
            answers,
            found,
            {name: count for name, count in partial.items() if count},
            self._forms(of_report),
            "all" if self.suite.split is None else "report",
            self._scores(of_selection),
            self._marks(of_selection),
        )

    def _counter(self, name: str, num_items: int) -> Callable[[int], None]:
        return lambda ended: self.report(f"{name}: {ended:,}/{num_items:,}")

    def _measured(
        self,
        name: str,
        items: Sequence[Item],
        prompts: Sequence[Sequence[int]],
        model: EvaluatedModel,
    ) -> list[list[Answer]]:
        """Return the answers to all items, each given and graded by one rank."""
        benchmark = self.suite.benchmarks[name]
        costs = [len(prompt) + benchmark.max_new_tokens for prompt in prompts]

        def measure(places: list[int]) -> list[list[Answer]]:
            mine = [items[place] for place in places], [prompts[place] for place in places]
            self.suite.engine.on_ended = self._counter(name, len(places))
            return benchmark.measure(*mine, model)

        return distributed.shared(costs, measure, model.in_step())

    def _scores(self, answers: Mapping[str, Sequence[Answer]]) -> dict[str, Score]:
        return {
            f"{name}/{score_name}": score
            for name, found in answers.items()
            if found
            for score_name, score in self.suite.benchmarks[name].scores(*_graded(found)).items()
        }

    def _forms(self, answers: Mapping[str, Sequence[Answer]]) -> dict[str, Score]:
        forms = {
            ability: self.suite.benchmarks[name].form_score(*_graded(answers[name]))
            for name, ability in self.suite.abilities.items()
        }
        return {ability: form for ability, form in forms.items() if form is not None}

    def _marks(self, answers: Mapping[str, Sequence[Answer]]) -> dict[str, dict[str, float]]:
        return {
            f"{name}/{score_name}": item_marks(found, mark)
            for name, found in answers.items()
            if found
            for score_name in self.suite.benchmarks[name].score_names
            if (mark := self.suite.benchmarks[name].mark_of(score_name)) is not None
        }


def _of(answers: Sequence[Answer], *parts: Part) -> list[Answer]:
    return [answer for answer in answers if answer.part in parts]


def _graded(answers: Sequence[Answer]) -> tuple[list[Item], list[Verdict]]:
    return [answer.item for answer in answers], [answer.verdict for answer in answers]


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
