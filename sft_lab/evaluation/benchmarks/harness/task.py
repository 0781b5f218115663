"""Tasks of lm-evaluation-harness as benchmarks of a run; needs the extra ``harness``."""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
from typing_extensions import override

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.evaluation.benchmarks.harness.find import find_task, quiet, seeded
from sft_lab.evaluation.benchmarks.harness.requests import HarnessModel, decoding_of
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding
from sft_lab.evaluation.item import Answer, Item, Mark, Verdict
from sft_lab.metrics.score import Score, accuracy, mean_score

_FEWSHOT_SEED = 1234  # lm-evaluation-harness's own
_NUM_RESAMPLES = 1000
_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


class HarnessTask(Benchmark):
    """One task of lm-evaluation-harness, asked and graded by its own rules.

    The prompts are made once, so that every evaluation of a run asks the same. A metric of which
    less is better, such as a perplexity, is measured and logged, but no forgetting is told of it.

    Args:
        task: The task's name: ``arc_easy``. Groups are no tasks.
        metrics: The task's metrics to measure, the first of which stands for the benchmark:
            ``acc``, or with the filter of a task that has several, ``exact_match,strict-match``.
        num_fewshot: Examples before each question; as the task says when not given.
        chat: Ask by the run's chat template, examples as turns, instead of with plain text.
        include_path: A folder with YAML files of tasks of one's own.
        max_new_tokens: Longest answer in tokens, where the task does not say.
        scale: Least and greatest value of the metrics; only those in [0, 1] are averaged.
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
        num_fewshot: int | None = None,
        chat: bool = False,
        include_path: str | None = None,
        max_new_tokens: int = 256,
        scale: tuple[float, float] = (0.0, 1.0),
        source: str | None = None,
        num_examples: int | None = None,
    ) -> None:
        if not task:
            raise RequestError("task must name a task of lm-evaluation-harness, got ''.")
        if not metrics or len(set(metrics)) < len(metrics):
            raise RequestError(
                f"metrics must name metrics of {task}, each once, such as acc; got {metrics}."
            )
        if num_fewshot is not None and num_fewshot < 0:
            raise RequestError(f"num_fewshot must be 0 or more, got {num_fewshot}.")
        super().__init__(task, max_new_tokens, source, num_examples)
        self.task = task
        self.metrics = {metric: re.sub(r"\W+", "_", metric).strip("_") for metric in metrics}
        self.score_names = tuple(self.metrics.values())
        self.num_fewshot = num_fewshot
        self.chat = chat
        self.include_path = include_path
        self.scale = scale
        self._instances: dict[str, list[Any]] = {}  # by item id, the requests that it makes

    @functools.cached_property
    def _loaded(self) -> Any:
        """The task as lm-evaluation-harness makes it, with its data."""
        if find_spec("lm_eval") is None:
            raise RequestError(
                f"task {self.task} needs lm-evaluation-harness, which is not installed; "
                "pip install 'sft_lab[harness]'."
            )
        with quiet(), seeded():
            task = find_task(self.task, self.include_path)
            if self.num_fewshot is not None:
                task.set_config("num_fewshot", self.num_fewshot)
            task.set_fewshot_seed(_FEWSHOT_SEED)
        if getattr(task, "UNSAFE_CODE", False):
            raise RequestError(
                f"task {self.task} runs generated code without a sandbox, which is not done here; "
                "sft_lab.evaluation has HumanEval and MBPP, which run it in one."
            )
        if getattr(task, "MULTIMODAL", False):
            raise RequestError(f"task {self.task} asks with images or sound; only text can be.")
        known = [
            _metric_key(metric, filter_.name)
            for filter_ in task._filters
            for metric in task.aggregation()
        ]
        for metric in self.metrics:
            if metric not in known:
                raise RequestError(
                    f"metrics: task {self.task} has no {metric!r}; it has {', '.join(known)}."
                )
        return task

    @override
    def check(self) -> None:
        self.items()

    @override
    def conditions(self) -> dict[str, str]:
        return {"lm_eval": version("lm_eval")}

    @override
    def protocol(self) -> dict[str, Any]:
        task = self._loaded
        return {
            **super().protocol(),
            "task": self.task,
            "version": task.VERSION,
            "num_fewshot": task.get_config("num_fewshot") or 0,
            "chat": self.chat,
            "max_new_tokens": self._answering[1],
        }

    @property
    @override
    def decoding(self) -> Decoding:
        return self._answering[0]

    @property
    def _answering(self) -> tuple[Decoding, int]:
        config = self._loaded.config
        return decoding_of(config.generation_kwargs or {}, config.repeats or 1, self.max_new_tokens)

    @override
    def is_ability(self, score_name: str) -> bool:
        return bool(self._loaded.higher_is_better().get(self._metric(score_name), True))

    @override
    def mark_of(self, score_name: str) -> str | None:
        from lm_eval.api.metrics import mean

        is_mean = self._loaded.aggregation()[self._metric(score_name)] is mean
        return score_name if is_mean else None

    def _metric(self, score_name: str) -> str:
        """Return the task's own name of a score's metric."""
        metrics = {name: metric.partition(",")[0] for metric, name in self.metrics.items()}
        return metrics[score_name]

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
            except RequestError as fault:
                raise RequestError(f"task {self.task}: {fault}") from fault
        return list(self._all_items)

    def _build(self, task: Any) -> list[Item]:
        """Make the requests of every question, few-shot examples and all, and an item of each."""
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
                raise RequestError(f"it makes requests of the kind {instance.request_type}.")
            if instance.request_type == "generate_until":
                decoding_of(instance.args[1], instance.repeats or 1, self.max_new_tokens)
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
        """Return the answer to each item, by the requests of the task and not its prompt."""
        return self.ask(
            items, HarnessModel(model, chat=self.chat, max_new_tokens=self.max_new_tokens)
        )

    def ask(self, items: Sequence[Item], model: HarnessModel) -> list[list[Answer]]:
        """Return the graded answer to each item."""
        asked = [instance for item in items for instance in self._instances[item.id]]
        for kind in _KINDS:
            some = [instance for instance in asked if instance.request_type == kind]
            if kind == "generate_until":
                for repeats in {instance.repeats or 1 for instance in some}:
                    alike = [i for i in some if (i.repeats or 1) == repeats]
                    answers = model.generate_until([i.args for i in alike], repeats)
                    for instance, found in zip(alike, answers, strict=True):
                        instance.resps = found
            elif some:
                values = getattr(model, kind)([instance.args for instance in some])
                for instance, value in zip(some, values, strict=True):
                    instance.resps = [value] * (instance.repeats or 1)
        said = [_said(self._instances[item.id]) for item in items]
        verdicts = self._verdicts(items)
        return [[Answer(*found)] for found in zip(items, said, verdicts, strict=True)]

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        """See ``Benchmark``; for tasks that ask for answers only.

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
        if not items:
            return []
        task = self._loaded
        # Filters work on all requests of a task, of which there is no public part.
        task._instances = [instance for item in items for instance in self._instances[item.id]]
        task.apply_filters()
        return [self._verdict(task, self._instances[item.id], item) for item in items]

    def _verdict(self, task: Any, instances: Sequence[Any], item: Item) -> Verdict:
        marks: dict[str, Mark] = {}
        for filter_name in instances[0].filtered_resps:
            results = [instance.filtered_resps[filter_name] for instance in instances]
            for metric, value in task.process_results(instances[0].doc, results).items():
                if (key := _metric_key(metric, filter_name)) in self.metrics:
                    # What some metrics say of an item is no mark yet, but a pair to be aggregated.
                    marks[self.metrics[key]] = cast(Mark, _plain(value))
        return Verdict(marks, f"expected {item.row['target']}")

    @override
    def scores(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Score]:
        found: dict[str, Score] = {}
        for metric, name in self.metrics.items():
            values = [v.marks[name] for v in verdicts if v.marks is not None and name in v.marks]
            if values:
                aggregate = self._loaded.aggregation()[metric.partition(",")[0]]
                score = found[name] = _score(values, aggregate)
                if not self.scale[0] <= score.value <= self.scale[1]:
                    raise RequestError(
                        f"{metric} of task {self.task} is {score.value:.4g}, which does not lie in "
                        f"{list(self.scale)}; set scale to its least and greatest value."
                    )
        return found


def _as_json(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
    """Keep a conversation as it is: the run's renderer is not known when requests are made."""
    return json.dumps([dict(message) for message in messages])


def _metric_key(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _said(instances: Sequence[Any]) -> str:
    """Return what a model said to an item: its answer, or the likelihood of every continuation."""
    lines = []
    for instance in instances:
        response = instance.resps[0]
        if isinstance(response, str):
            lines.append(response)
        else:
            value = response[0] if isinstance(response, tuple) else response
            lines.append(f"{value:.4f} {instance.args[-1]}")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Return a value of numpy's as Python's own, which can be written as JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return tuple(_plain(part) for part in value)
    return value


def _score(values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> Score:
    from lm_eval.api.metrics import mean

    if aggregate is mean and all(isinstance(value, bool | int | float) for value in values):
        if set(values) <= {0, 1}:
            return accuracy([value == 1 for value in values])
        return mean_score([float(value) for value in values])
    draws = np.random.default_rng(0).integers(0, len(values), (_NUM_RESAMPLES, len(values)))
    drawn = [float(aggregate([values[index] for index in draw])) for draw in draws]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Score(float(aggregate(values)), float(low), float(high), len(values))
