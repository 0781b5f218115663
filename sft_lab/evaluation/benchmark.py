"""The base class of benchmarks: items, a grader, and scores."""

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from sft_lab.config.ranges import PositiveInt
from sft_lab.errors import RequestError
from sft_lab.evaluation.completions import UNKNOWN, GradedFile, read_completions
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding
from sft_lab.evaluation.item import Answer, Item, Mark, Verdict
from sft_lab.evaluation.item_file import ItemFile
from sft_lab.evaluation.prompts import prompt_ids
from sft_lab.evaluation.reasoning import Completion, split_reasoning
from sft_lab.evaluation.sandbox.sandbox import LevelChoice
from sft_lab.metrics.item_score import ItemScore, MarkKey
from sft_lab.metrics.score import Score

__all__ = ["Answer", "Benchmark", "Item", "Mark", "Verdict"]


class Benchmark(ItemFile):
    """Items with a grader; a new benchmark is a subclass that names its fields and grades answers.

    Args:
        path: The items, as a file or hub name; see ``ItemFile``.
        max_new_tokens: Longest completion, in tokens.
        source: The SFT source that teaches this ability; the first stage that trains it starts
            forgetting and backward transfer.
        num_examples: See ``ItemFile``.
        split: See ``ItemFile``.
        subset: See ``ItemFile``.
        data_files: See ``ItemFile``.
        revision: See ``ItemFile``.

    Raises:
        RequestError: If an argument is out of range.
    """

    score_names: tuple[str, ...]
    """Names of the scores, which end metric keys; the first is the benchmark's main score.

    The main score tolerates an answer's form: it is right if its content is.
    """

    strict_score: str | None = None
    """Name of the score that also requires the form that the prompt asks for."""

    form_mark: str | None = None
    """Name of the mark that says whether an answer has the form that the prompt asks for."""

    scale: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest possible score."""

    turns: ClassVar[int] = 1
    """Maximum number of answers to an item, including answers to ``follow_up``."""

    chance: float = 0.0
    """The score of guessing; forgetting is undefined until a score is above it."""

    needs_likelihoods: ClassVar[bool] = False
    """Whether ``measure`` asks the engine for likelihoods."""

    decides_decoding: ClassVar[bool] = False
    """Whether the benchmark fixes ``decoding`` itself, so that a config cannot set it."""

    def __init__(
        self,
        path: str,
        max_new_tokens: PositiveInt,
        source: str | None = None,
        num_examples: PositiveInt | None = None,
        split: str | None = None,
        subset: str | None = None,
        data_files: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(path, num_examples, split, subset, data_files, revision)
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
        if source == "":
            raise RequestError("source must be the name of an SFT source or null, got ''.")
        self.max_new_tokens = max_new_tokens
        self.source = source

    def measure(
        self, items: Sequence[Item], prompts: Sequence[Sequence[int]], model: EvaluatedModel
    ) -> list[list[Answer]]:
        """Return the graded answers to each item: by default completions, then follow-ups.

        A benchmark that measures something else, such as likelihoods, overrides this.

        Args:
            items: The items.
            prompts: Token ids of each item's prompt.
            model: The model under evaluation.
        """
        answers: list[list[Answer]] = [[] for _ in items]
        asked = list(enumerate(items))
        samples: list[int] | None = None  # all of each prompt at first, then one per conversation
        while asked:
            completions = model.complete(prompts, self.max_new_tokens, samples=samples)
            if samples is None:
                num_samples = model.decoding.num_samples
                samples = list(range(num_samples)) * len(asked)
                asked = [each for each in asked for _ in range(num_samples)]
            verdicts = self.grade([item for _, item in asked], [c.answer for c in completions])
            following: list[tuple[int, Item, int]] = []
            for (place, item), sample, completion, verdict in zip(
                asked, samples, completions, verdicts, strict=True
            ):
                answer = Answer(item, completion.answer, verdict, completion.reasoning)
                answers[place].append(answer)
                if (turn := self.follow_up(item, completion.answer)) is not None:
                    following.append(
                        (place, replace(turn, group=item.group_id, cluster=item.cluster), sample)
                    )
            asked = [(place, turn) for place, turn, _ in following]
            samples = [sample for _, _, sample in following]
            prompts = [prompt_ids(model.renderer, turn) for _, turn in asked]
        return answers

    @abstractmethod
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        """Grade one completion per item, in order."""

    def metrics(self) -> dict[str, ItemScore]:
        """Return an empty metric for each score, by name; by default a mean of marks."""
        return {name: ItemScore() for name in self.score_names}

    def scored_marks(self, item: Item, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        """Return the marks that a graded answer adds to each score, by the score's name.

        By default it is the mark of the same name.

        Args:
            item: The item, or the turn of it, that was answered.
            verdict: Its verdict, which has marks.
        """
        marks = {name: verdict.mark(name) for name in self.score_names}
        return {name: [mark] for name, mark in marks.items() if mark is not None}

    def scores(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Score]:
        """Return the scores of graded answers, by name, in the order of ``metrics``.

        Answers that could not be graded are left out, and so is a score without marks.

        Args:
            items: The item of each answer; one may have several.
            verdicts: Their verdicts, from ``grade``.
        """
        return self._mean(self.metrics(), self.scored_marks, items, verdicts)

    def form_score(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Score | None:
        """Return the share of answers in the form that the prompt asks for; None without a form.

        Args:
            items: The item of each answer; one may have several.
            verdicts: Their verdicts, from ``grade``.
        """
        name = self.form_mark
        if name is None:
            return None

        def form(item: Item, verdict: Verdict) -> dict[str, list[float]]:
            mark = verdict.mark(name)
            return {} if mark is None else {name: [mark]}

        return self._mean({name: ItemScore()}, form, items, verdicts).get(name)

    def _mean(
        self,
        metrics: Mapping[str, ItemScore],
        marks_of: Callable[[Item, Verdict], Mapping[str, Sequence[float]]],
        items: Sequence[Item],
        verdicts: Sequence[Verdict],
    ) -> dict[str, Score]:
        places = {item.group_id: place for place, item in enumerate(self.items())}
        answered: Counter[int] = Counter()
        keys: dict[str, list[MarkKey]] = {name: [] for name in metrics}
        marks: dict[str, list[float]] = {name: [] for name in metrics}
        for item, verdict in zip(items, verdicts, strict=True):
            place = places[item.group_id]
            if verdict.marks is not None:
                for name, found in marks_of(item, verdict).items():
                    keys[name] += [(place, answered[place], part) for part in range(len(found))]
                    marks[name] += found
            answered[place] += 1
        clusters = [item.cluster_id for item in self.items()]
        for name, metric in metrics.items():
            metric.clusters = clusters
            metric.update(keys[name], marks[name])
        scores = {name: metric.score() for name, metric in metrics.items()}
        return {name: score for name, score in scores.items() if score is not None}

    @classmethod
    def for_grading(cls, path: str, sandbox: LevelChoice) -> "Benchmark":
        """Build the benchmark with which ``score`` grades a file; it generates nothing.

        Args:
            path: The benchmark's own file.
            sandbox: How generated programs are contained, if there are any.
        """
        return cls(path=path, max_new_tokens=1)

    def grade_file(self, path: str, model: str | None = None) -> GradedFile:
        """Grade a file of completions, or of another format that is standard for the benchmark.

        Reasoning in a completion is not graded; see ``split_reasoning``.

        Args:
            path: By default JSONL (also ``.gz``) or Parquet with ``task_id`` and ``completion``.
            model: The model whose rows to grade, if a file may hold several models.

        Raises:
            RequestError: If the file or a row is unusable.
        """
        if model is not None:
            raise RequestError(
                f"--model selects one of several models in a file; files of {type(self).__name__} "
                "name no model. Leave it out."
            )
        items = {item.id: item for item in self.items()}
        rows = read_completions(path, items)
        split = [(items.get(task_id), split_reasoning(text)) for task_id, text in rows]
        known = [(item, found) for item, found in split if item is not None]
        graded = iter(self.grade([item for item, _ in known], [c.answer for _, c in known]))
        return GradedFile(
            [
                (task_id, item, UNKNOWN if item is None else next(graded))
                for (task_id, _), (item, _) in zip(rows, split, strict=True)
            ],
            list(items),
            {**self.conditions(), **_reasoning_counts([found for _, found in known])},
        )

    def check(self) -> None:
        """Check, before anything is trained, that completions can be graded.

        Raises:
            RequestError: If they cannot.
        """

    def is_ability(self, score_name: str) -> bool:
        """Return whether a higher score is better; by default it is.

        Other scores are measured and logged, but have no forgetting or retention.
        """
        return True

    def mark_of(self, score_name: str) -> str | None:
        """Return the name of the mark whose mean over items is the score; paired tests need it.

        By default it is the score's own name; None if the score is not a mean over items.
        """
        return score_name

    @property
    def decoding(self) -> Decoding:
        """The decoding of completions, if ``decides_decoding``."""
        raise NotImplementedError(f"{type(self).__name__} does not fix its decoding.")

    def temperatures(self) -> Mapping[str, float]:
        """Return the temperatures by kind of item, if ``measure`` sets them; none by default."""
        return {}

    def conditions(self) -> dict[str, str]:
        """Return the conditions of grading, which are recorded but change no verdict."""
        return {}

    def follow_up(self, item: Item, completion: str) -> Item | None:
        """Return the next turn after an answer; None by default."""
        return None

    def reference_answer(self, item: Item) -> str | None:
        """Return the right answer to an item, as a training row would give it; None by default.

        For an item with ``text`` it is the continuation of the text.
        """
        return None

    def agrees_with(self) -> Mapping[str, str]:
        """Return the published protocol that grades as a score does, by the score's name.

        A score without one is the lab's own. It goes into the run's record and the report's table
        of protocols, and changes no digest.
        """
        return {}

    def texts(self, item: Item) -> list[str]:
        """Return the texts that no training row should contain; by default the prompt."""
        return [message["content"] for message in item.messages]

    def protocol(self) -> dict[str, Any]:
        """Return the settings that affect a score; a subclass adds its own."""
        return {
            "benchmark": type(self).__name__,
            "scores": list(self.score_names),
            "max_new_tokens": self.max_new_tokens,
        }

    def digest(self) -> str:
        """Return the sha256 of protocol and items: scores are comparable only if it is equal."""
        items = [[item.id, item.messages, item.text, dict(item.row)] for item in self.items()]
        document = {"protocol": self.protocol(), "items": items}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _reasoning_counts(completions: Sequence[Completion]) -> dict[str, int]:
    """Return how many completions were graded without their reasoning, if any were."""
    counts = {
        "reasoning_cut": sum(bool(c.reasoning) for c in completions),
        "reasoning_unclosed": sum(bool(c.reasoning and not c.answer) for c in completions),
    }
    return {name: count for name, count in counts.items() if count}
