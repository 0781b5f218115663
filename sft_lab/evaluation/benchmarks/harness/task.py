"""Tasks of lm-evaluation-harness as benchmarks of a run; needs the extra ``harness``."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from typing_extensions import override

from sft_lab.config.ranges import NonNegativeInt, PositiveInt
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.evaluation.benchmarks.harness.find import find_task, quiet, seeded
from sft_lab.evaluation.benchmarks.harness.grading import aggregate, grade, metric_key, response
from sft_lab.evaluation.benchmarks.harness.requests import HarnessModel, decoding_of
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding
from sft_lab.evaluation.item import Answer, Item, Verdict
from sft_lab.metrics.item_score import ItemScore
from sft_lab.metrics.score import Score

_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


class HarnessTask(Benchmark):
    """One task of lm-evaluation-harness, with its own prompts and grading.

    Prompts are built once, so every evaluation of a run uses the same. A metric for which lower is
    better, such as a perplexity, is logged but has no forgetting.

    Args:
        task: The task's name, such as ``arc_easy``; a group of tasks is refused.
        metrics: The task's metrics to measure; the first is the benchmark's main score. Each is a
            name, ``acc``, with the filter if the task has several: ``exact_match,strict-match``.
        num_fewshot: Examples before each question; by default as the task defines.
        chat: Use the run's chat template, with examples as turns, instead of plain text.
        include_path: A folder with YAML files of custom tasks.
        max_new_tokens: Longest answer in tokens, if the task sets no limit.
        scale: Lowest and highest value of the metrics; only those in [0, 1] are averaged.
        source: See ``Benchmark``.
        num_examples: See ``Benchmark``.

    Raises:
        RequestError: If an argument is out of range.
    """

    needs_likelihoods = True
    decides_decoding = True

    def __init__(
        self,
        task: str,
        metrics: list[str],
        num_fewshot: NonNegativeInt | None = None,
        chat: bool = False,
        include_path: str | None = None,
        max_new_tokens: PositiveInt = 256,
        scale: tuple[float, float] = (0.0, 1.0),
        source: str | None = None,
        num_examples: PositiveInt | None = None,
    ) -> None:
        if not task:
            raise RequestError("task must name a task of lm-evaluation-harness, got ''.")
        if not metrics or len(set(metrics)) < len(metrics):
            raise RequestError(
                f"metrics must name metrics of {task}, each once, such as acc; got {metrics}."
            )
        super().__init__(task, max_new_tokens, source, num_examples)
        self.task = task
        self.metric_keys = {re.sub(r"\W+", "_", key).strip("_"): key for key in metrics}
        self.score_names = tuple(self.metric_keys)
        self.num_fewshot = num_fewshot
        self.chat = chat
        self.include_path = include_path
        self.scale = scale
        self._instances: dict[str, list[Any]] = {}  # by item id, its requests
        self._settings: dict[str, Any] = {}  # generation_kwargs of the requests

    @functools.cached_property
    def _loaded(self) -> Any:
        """The harness's task, with its data."""
        task = find_task(self.task, self.include_path, self.num_fewshot)
        known = [
            metric_key(metric, filter_.name)
            for filter_ in task._filters
            for metric in task.aggregation()
        ]
        for key in self.metric_keys.values():
            if key not in known:
                raise RequestError(
                    f"metrics: task {self.task} has no {key!r}; it has {', '.join(known)}."
                )
        return task

    @override
    def check(self) -> None:
        self.items()

    @override
    def conditions(self) -> dict[str, str]:
        return {"lm_eval": version("lm_eval")}

    @override
    def agrees_with(self) -> Mapping[str, str]:
        return dict.fromkeys(self.score_names, f"lm-evaluation-harness, {self.task}")

    @override
    def protocol(self) -> dict[str, Any]:
        task = self._loaded
        return {
            **super().protocol(),
            "task": self.task,
            "version": task.VERSION,
            "num_fewshot": task.get_config("num_fewshot") or 0,
            "chat": self.chat,
            "max_new_tokens": self._generation[1],
        }

    @property
    @override
    def decoding(self) -> Decoding:
        return self._generation[0]

    @property
    def _generation(self) -> tuple[Decoding, int]:
        self.all_items()  # tasks written as classes put their settings into requests only
        repeats = self._loaded.config.repeats or 1
        return decoding_of(self._settings, repeats, self.max_new_tokens)

    @override
    def is_ability(self, score_name: str) -> bool:
        return bool(self._loaded.higher_is_better().get(self._metric(score_name), True))

    @override
    def mark_of(self, score_name: str) -> str | None:
        from lm_eval.api.metrics import mean

        is_mean = self._loaded.aggregation()[self._metric(score_name)] is mean
        return score_name if is_mean else None

    def _metric(self, score_name: str) -> str:
        """Return the task's own name of a score's metric, without the filter."""
        return self.metric_keys[score_name].partition(",")[0]

    @override
    def texts(self, item: Item) -> list[str]:
        text = self._loaded.doc_to_text(self._instances[item.id][0].doc)
        return [text] if isinstance(text, str) else [str(r[1]) for r in item.row["requests"]]

    @override
    def all_items(self) -> list[Item]:
        if self._all_items is None:
            task = self._loaded
            try:
                self._all_items = self._build(task)
                decoding_of(self._settings, task.config.repeats or 1, self.max_new_tokens)
            except RequestError as fault:
                raise RequestError(f"task {self.task}: {fault}") from fault
        return list(self._all_items)

    def _build(self, task: Any) -> list[Item]:
        """Build the requests of every question, few-shot examples included, and its item."""
        with quiet(), seeded():
            task.build_all_requests(
                apply_chat_template=self.chat,
                fewshot_as_multiturn=self.chat,
                chat_template=_as_json if self.chat else None,
            )
        by_doc: dict[int, list[Any]] = {}
        for instance in task.instances:
            by_doc.setdefault(instance.doc_id, []).append(instance)
        items = []
        for number, instances in sorted(by_doc.items()):
            instances.sort(key=lambda instance: instance.idx)
            item = self._item(f"{self.task}/{number}", task, instances)
            self._instances[item.id] = instances
            items.append(item)
        return items

    def _item(self, item_id: str, task: Any, instances: Sequence[Any]) -> Item:
        for instance in instances:
            if instance.request_type not in _KINDS:
                raise RequestError(f"requests of the kind {instance.request_type} are unsupported.")
            if instance.request_type == "generate_until":
                self._settings = self._settings or instance.args[1]
                if self._settings != instance.args[1]:
                    raise RequestError("its questions differ in generation_kwargs; unsupported.")
        row = {
            "requests": [[instance.request_type, *instance.args] for instance in instances],
            "target": str(task.doc_to_target(instances[0].doc)),
        }
        context = instances[0].args[0]
        if not self.chat or instances[0].request_type == "loglikelihood_rolling":
            return Item(item_id, (), row, text=context)
        messages = json.loads(context)
        if messages[-1]["role"] == "assistant":  # the beginning of the answer
            messages.pop()
        return Item(item_id, tuple(messages), row)

    @override
    def measure(
        self, items: Sequence[Item], prompts: Sequence[Sequence[int]], model: EvaluatedModel
    ) -> list[list[Answer]]:
        """Return the answer to each item, by the task's requests instead of the prompts."""
        return self.ask(items, HarnessModel(model, chat=self.chat))

    def ask(self, items: Sequence[Item], model: HarnessModel) -> list[list[Answer]]:
        """Return the graded answer to each item."""
        asked = [instance for item in items for instance in self._instances[item.id]]
        reasoning: dict[int, str] = {}
        for kind in _KINDS:
            some = [instance for instance in asked if instance.request_type == kind]
            if some and kind == "generate_until":
                decoding, max_new_tokens = self._generation
                contexts = [instance.args[0] for instance in some]
                completions = model.complete(contexts, max_new_tokens, decoding)
                for instance, found in zip(some, completions, strict=True):
                    # A greedy answer is the same however often it is asked for.
                    repeats = (instance.repeats or 1) // decoding.num_samples
                    instance.resps = [completion.answer for completion in found] * repeats
                    reasoning[id(instance)] = found[0].reasoning
            elif some:
                values = getattr(model, kind)([instance.args for instance in some])
                for instance, value in zip(some, values, strict=True):
                    instance.resps = [value] * (instance.repeats or 1)
        answers = []
        for item, verdict in zip(items, self._verdicts(items), strict=True):
            instances = self._instances[item.id]
            before = reasoning.get(id(instances[0]), "")
            answers.append([Answer(item, response(instances), verdict, before)])
        return answers

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        """See ``Benchmark``; for tasks that generate answers only.

        Raises:
            TypeError: If the task asks for likelihoods.
        """
        for item, completion in zip(items, completions, strict=True):
            instances = self._instances[item.id]
            if [instance.request_type for instance in instances] != ["generate_until"]:
                raise TypeError(f"task {self.task} grades likelihoods, not answers; use measure.")
            instances[0].resps = [completion] * (instances[0].repeats or 1)
        return self._verdicts(items)

    def _verdicts(self, items: Sequence[Item]) -> list[Verdict]:
        instances = [self._instances[item.id] for item in items]
        graded = grade(self._loaded, instances) if instances else []
        return [
            Verdict(
                {name: marks[key] for name, key in self.metric_keys.items() if key in marks},
                f"expected {item.row['target']}",
            )
            for item, marks in zip(items, graded, strict=True)
        ]

    @override
    def metrics(self) -> dict[str, ItemScore]:
        return {name: ItemScore() for name in self.score_names if self.mark_of(name)}

    @override
    def scored_marks(self, item: Item, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        found = super().scored_marks(item, verdict)
        return {name: marks for name, marks in found.items() if self.mark_of(name)}

    @override
    def scores(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Score]:
        found = super().scores(items, verdicts)
        aggregations = self._loaded.aggregation()
        for name in self.score_names:  # others than means over items, such as a perplexity
            values = [v.marks[name] for v in verdicts if v.marks is not None and name in v.marks]
            if values and not self.mark_of(name):
                found[name] = aggregate(values, aggregations[self._metric(name)])
        for name, score in found.items():
            if not self.scale[0] <= score.value <= self.scale[1]:
                raise RequestError(
                    f"{self.metric_keys[name]} of task {self.task} is {score.value:.4g}, outside "
                    f"{list(self.scale)}; set scale to its lowest and highest value."
                )
        return {name: found[name] for name in self.score_names if name in found}


def _as_json(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
    """Return a conversation unrendered: requests are built before the run's renderer is known."""
    return json.dumps([dict(message) for message in messages])
