"""Test that what chooses and what is reported share no cluster, and that runs split alike."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_jsonl

from sft_lab.data.rendering import Renderer
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.evaluator import Evaluation, Evaluator
from sft_lab.evaluation.generation import Engine
from sft_lab.evaluation.split import selection_items
from sft_lab.evaluation.suite import EvaluationSuite

ITEMS = [Item(f"m{n}", (), {}, cluster=f"structure {n % 50}") for n in range(200)]


@pytest.mark.parametrize("fraction", [0.5, 0.25])
def test_whole_clusters_of_about_the_asked_size_are_chosen(fraction: float) -> None:
    chosen = selection_items(ITEMS, fraction)
    assert abs(len(chosen) - 200 * fraction) <= 2  # half a cluster of four
    sides = {(item.cluster, item.id in chosen) for item in ITEMS}
    assert len(sides) == 50


def test_the_order_of_items_changes_nothing_and_less_nests_in_more() -> None:
    shuffled = random.Random(0).sample(ITEMS, len(ITEMS))
    assert selection_items(shuffled, 0.5) == selection_items(ITEMS, 0.5)
    assert selection_items(ITEMS, 0.25) < selection_items(ITEMS, 0.5)


class Word(Benchmark):
    """Right when the answer is the row's word."""

    score_names = ("accuracy",)
    cluster_field = "structure"
    form_mark = "form"

    def grade(self, items: Any, completions: Any) -> list[Verdict]:
        return [
            Verdict({"accuracy": text == item.row["word"], "form": text.islower()}, text)
            for item, text in zip(items, completions, strict=True)
        ]


class Numbered(Engine):
    """Answers with the number at the end of the prompt's question."""

    def complete(self, model: Any, prompts: Any, *, decode: Any, **settings: Any) -> list[str]:
        return [decode(prompt).split("?")[0].split()[-1] for prompt in prompts]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Return 24 items in 12 structures; the answers to the first half are right."""
    rows = [
        {
            "id": f"w{n}",
            "messages": [{"role": "user", "content": f"say {n}?"}],
            "word": str(n) if n < 12 else "other",
            "structure": f"s{n % 12}",
        }
        for n in range(24)
    ]
    return write_jsonl(tmp_path / "words.jsonl", rows)


def evaluated(
    path: Path, tokenizer: Any, split: float | None = 0.5, examples: int | None = None, **asked: Any
) -> Evaluation:
    benchmark = Word(str(path), 2, source="math", num_examples=examples)
    suite = EvaluationSuite({"words": benchmark}, engine=Numbered(), split=split)
    return Evaluator(suite, Renderer(tokenizer, None)).evaluate(torch.nn.Module(), 0, **asked)


def test_each_side_has_scores_of_its_own_items(words: Path, chat_tokenizer: Any) -> None:
    found = evaluated(words, chat_tokenizer)
    key = "words/accuracy"
    answers = found.answers["words"]
    assert Counter(answer.part for answer in answers) == {"selection": 12, "report": 12}
    for part, score in (("report", found.scores[key]), ("selection", found.selection[key])):
        right = [a.verdict.mark("accuracy") for a in answers if a.part == part]
        assert (score.value, score.n) == (sum(filter(None, right)) / 12, 12)
    assert set(found.selection_marks[key]) == {a.item.id for a in answers if a.part == "selection"}
    assert found.forms["math"].n == 12
    assert found.reported == "report"


def test_without_a_split_all_items_are_reported(words: Path, chat_tokenizer: Any) -> None:
    found = evaluated(words, chat_tokenizer, split=None)
    assert found.scores["words/accuracy"].n == 24
    assert found.scores["words/accuracy"].value == 0.5
    assert {answer.part for answer in found.answers["words"]} == {"all"} == {found.reported}
    assert (found.selection, found.selection_marks) == ({}, {})


def test_a_part_of_the_reported_items_leaves_the_selection_whole(
    words: Path, chat_tokenizer: Any
) -> None:
    found = evaluated(words, chat_tokenizer, num_items={"words": 3})
    assert (found.scores["words/accuracy"].n, found.selection["words/accuracy"].n) == (3, 12)
    assert found.num_items == {"words": 3}
    found = evaluated(words, chat_tokenizer, num_items={"words": 3}, selection=())
    assert (found.scores["words/accuracy"].n, found.selection) == (3, {})
    found = evaluated(words, chat_tokenizer, num_items={"words": 0})
    assert (found.scores, found.num_items) == ({}, {})


def test_an_item_keeps_its_side_when_fewer_are_measured(words: Path, chat_tokenizer: Any) -> None:
    every = {a.item.id: a.part for a in evaluated(words, chat_tokenizer).answers["words"]}
    some = {
        a.item.id: a.part for a in evaluated(words, chat_tokenizer, examples=8).answers["words"]
    }
    assert some == {item: every[item] for item in some}


def test_a_side_without_items_is_refused(words: Path, chat_tokenizer: Any) -> None:
    with pytest.raises(RequestError, match=r"0\.01 leaves one side of benchmark 'words' without"):
        evaluated(words, chat_tokenizer, split=0.01)
    with pytest.raises(RequestError, match=r"evaluation.split must be .*, got 1"):
        EvaluationSuite({}, split=1)
