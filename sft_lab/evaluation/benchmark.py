"""The base class of benchmarks: items read from a file, a prompt for each, and a grader."""

import hashlib
import json
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from sft_lab.errors import RequestError
from sft_lab.evaluation.completions import UNKNOWN, GradedFile, read_completions
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding
from sft_lab.evaluation.item import Answer, Item, Mark, Verdict
from sft_lab.evaluation.json_lines import json_lines
from sft_lab.evaluation.prompts import prompt_ids
from sft_lab.evaluation.sandbox.sandbox import LevelChoice
from sft_lab.metrics.score import Score, accuracy, mean_score
from sft_lab.paths import resolve

__all__ = ["Answer", "Benchmark", "Item", "Mark", "Verdict", "json_lines"]


class Benchmark(ABC):
    """Items with a grader; a new benchmark is a subclass that names its fields and grades answers.

    A line is a JSON object, ``{"id": "m1", "messages": [{"role": "user", "content": "2 + 2?"}]}``,
    plus the ``row_fields`` of the benchmark; a subclass for rows of another form overrides
    ``item``.

    Args:
        path: JSONL file (also ``.gz``), or ``world://`` name of a packaged one; read on the first
            use, not when the benchmark is built.
        max_new_tokens: Longest completion, in tokens.
        source: The SFT source that teaches this ability; the first stage that trains it starts
            forgetting and backward transfer.
        num_examples: Use only this many rows, spread evenly over the file; all by default.

    Raises:
        RequestError: If an argument is out of range.
    """

    score_names: tuple[str, ...]
    """Names of the scores, which end metric keys; the first is the benchmark's main score."""

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

    row_fields: ClassVar[Mapping[str, type]] = {}

    def __init__(
        self,
        path: str,
        max_new_tokens: int,
        source: str | None = None,
        num_examples: int | None = None,
    ) -> None:
        if not path:
            raise RequestError("path must name the benchmark's JSONL file, got ''.")
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
        if source == "":
            raise RequestError("source must be the name of an SFT source or null, got ''.")
        if num_examples is not None and num_examples < 1:
            raise RequestError(
                f"num_examples must be 1 or more, got {num_examples}. Leave it out to use all rows."
            )
        self.path = path
        self.max_new_tokens = max_new_tokens
        self.source = source
        self.num_examples = num_examples
        self._all_items: list[Item] | None = None
        self._items: list[Item] | None = None

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
            verdicts = self.grade([item for _, item in asked], completions)
            following: list[tuple[int, Item, int]] = []
            for (place, item), sample, completion, verdict in zip(
                asked, samples, completions, verdicts, strict=True
            ):
                answers[place].append(Answer(item, completion, verdict))
                if (turn := self.follow_up(item, completion)) is not None:
                    following.append((place, replace(turn, group=item.group_id), sample))
            asked = [(place, turn) for place, turn, _ in following]
            samples = [sample for _, _, sample in following]
            prompts = [prompt_ids(model.renderer, turn) for _, turn in asked]
        return answers

    @abstractmethod
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        """Grade one completion per item, in order."""

    def scores(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Score]:
        """Return the scores of graded completions, by name.

        By default a score is the share of true marks of the same name, with Wilson's interval, or
        a bootstrap over items if an item has several completions. Completions that could not be
        graded are left out.

        Args:
            items: The item of each completion; one may have several.
            verdicts: Their verdicts, from ``grade``.
        """
        known = [
            (item.id, verdict.marks)
            for item, verdict in zip(items, verdicts, strict=True)
            if verdict.marks is not None
        ]
        if not known:
            return {}
        ids = [item_id for item_id, _ in known]
        marks = {name: [bool(found[name]) for _, found in known] for name in self.score_names}
        if len(set(ids)) == len(ids):
            return {name: accuracy(found) for name, found in marks.items()}
        return {name: mean_score(found, groups=ids) for name, found in marks.items()}

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

        Args:
            path: By default JSONL with ``task_id`` and ``completion``; also ``.gz``.
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
        rows = read_completions(path)
        known = [(items[task_id], completion) for task_id, completion in rows if task_id in items]
        verdicts = iter(self.grade([i for i, _ in known], [text for _, text in known]))
        return GradedFile(
            [
                (task_id, items.get(task_id), next(verdicts) if task_id in items else UNKNOWN)
                for task_id, _ in rows
            ],
            list(items),
            self.conditions(),
        )

    def check(self) -> None:  # noqa: B027 - most have nothing to check
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

    def conditions(self) -> dict[str, str]:
        """Return the conditions of grading, which are recorded but change no verdict."""
        return {}

    def follow_up(self, item: Item, completion: str) -> Item | None:
        """Return the next turn after an answer; None by default."""
        return None

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

    def items(self) -> list[Item]:
        """Return the items to measure, in file order; the file is read once.

        Raises:
            RequestError: If the file or a row is unusable; names the file, the line and the key.
        """
        if self._items is None:
            self._items = self._chosen(self.all_items())
        return list(self._items)

    def all_items(self) -> list[Item]:
        """Return all items of the file; ``items`` returns the ones that are measured."""
        if self._all_items is None:
            self._all_items = list(self._read())
        return list(self._all_items)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check the benchmark's own fields of one row.

        Raises:
            ValueError: If one is missing or wrong; the caller adds file and line.
        """
        for key, kind in self.row_fields.items():
            if key not in row:
                raise ValueError(f"key '{key}' is missing; {type(self).__name__} rows need it.")
            if not isinstance(row[key], kind) or (kind is int and isinstance(row[key], bool)):
                raise ValueError(f"key '{key}' must be {_json_name(kind)}, {_got(row[key])}.")

    def item(self, row: Mapping[str, Any], number: int) -> Item:
        """Build an item from a row.

        Args:
            row: An object of the file.
            number: Number of rows before it.

        Raises:
            ValueError: If a key is missing or wrong; the caller adds file and line.
        """
        if not isinstance(row.get("id"), str) or not row["id"]:
            raise ValueError(f"key 'id' must be a non-empty string, {_got(row.get('id'))}.")
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise ValueError(
                "key 'messages' must be a list of {'role': string, 'content': string}, "
                f"{_got(messages)}."
            )
        if messages[-1]["role"] != "user":
            raise ValueError(
                f"key 'messages' must end with the user's turn, got role '{messages[-1]['role']}'."
            )
        return Item(id=row["id"], messages=tuple(messages), row=row)

    def _read(self) -> Iterator[Item]:
        first_line: dict[str, int] = {}
        for number, (line, row) in enumerate(json_lines(resolve(self.path), self.path)):
            try:
                if not isinstance(row, dict):
                    raise ValueError(f"a row must be an object, {_got(row)}.")
                self.check_row(row)
                item = self.item(row, number)
                if item.id in first_line:
                    raise ValueError(
                        f"id '{item.id}' is already on line {first_line[item.id]}; "
                        "give every row its own."
                    )
            except ValueError as error:
                raise RequestError(f"{self.path}, line {line}: {error}") from error
            first_line[item.id] = line
            yield item

    def _chosen(self, items: list[Item]) -> list[Item]:
        if not items:
            raise RequestError(f"{self.path} has no rows; a benchmark needs at least one.")
        if self.num_examples is None:
            return items
        if self.num_examples > len(items):
            raise RequestError(
                f"num_examples is {self.num_examples}, but {self.path} has {len(items)} rows. "
                "Leave it out to use all."
            )
        # Files are often sorted by kind: the first rows would all be of one kind.
        return [items[i * len(items) // self.num_examples] for i in range(self.num_examples)]


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _json_name(kind: type) -> str:
    return "a string" if kind is str else "an object" if kind is Mapping else kind.__name__


def _got(value: object) -> str:
    return f"got {reprlib.repr(value)}"
