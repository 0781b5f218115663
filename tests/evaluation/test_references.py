"""Test the loss of reference answers, and the share of answers in the asked form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_files import GSM8K as ROWS
from benchmark_files import HUMANEVAL
from conftest import write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.benchmarks.gsm8k import GSM8K
from sft_lab.evaluation.benchmarks.humaneval import HumanEval
from sft_lab.evaluation.evaluator import Evaluation, Evaluator
from sft_lab.evaluation.generation import Engine
from sft_lab.evaluation.references import reference_pairs
from sft_lab.evaluation.suite import EvaluationSuite


class Answers(Engine):
    """Answers with texts, one after the other; gives no likelihoods."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def complete(self, model: Any, prompts: Any, **settings: Any) -> list[str]:
        return list(self.texts)


@pytest.fixture
def gsm8k(tmp_path: Path) -> GSM8K:
    rows = [{"question": f"{n} + 1?", "answer": f"It is {'so ' * n}\n#### {n + 1}"} for n in (4, 9)]
    return GSM8K(str(write_jsonl(tmp_path / "gsm8k.jsonl", rows)), 2, source="math")


def evaluated(base: Path, suite: EvaluationSuite) -> Evaluation:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    renderer = Renderer(AutoTokenizer.from_pretrained(base), None)
    return Evaluator(suite, renderer).evaluate(model, step=0)


def test_answer_loss_is_a_mean_over_the_tokens_of_rendered_answers(
    tiny_base: Path, gsm8k: GSM8K
) -> None:
    found = evaluated(tiny_base, EvaluationSuite({"gsm8k": gsm8k}, batch_size=2))
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    nats, tokens = 0.0, 0
    for item in gsm8k.items():
        prompt = f"<user>{item.row['question']}<end><assistant>"
        whole = torch.tensor([tokenizer(f"{prompt}{item.row['answer']}<end>")["input_ids"]])
        labels = whole.clone()
        labels[0, : len(tokenizer(prompt)["input_ids"])] = -100
        with torch.no_grad():
            mean = model(whole, labels=labels).loss.item()
        count = int((labels != -100).sum())
        nats, tokens = nats + mean * count, tokens + count
    assert found.losses == {"answer_loss/math": pytest.approx(nats / tokens, rel=1e-5)}


def test_a_continuation_follows_its_text(tiny_base: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "humaneval.jsonl", HUMANEVAL)
    benchmark = HumanEval(str(rows), 2, prompt="continuation", sandbox="isolated_or_limited")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    pairs = reference_pairs(benchmark, Renderer(tokenizer, None))
    [text] = {row["canonical_solution"] for row in HUMANEVAL[:1]}
    assert pairs[0] is not None
    prompt, answer = pairs[0]
    assert tokenizer.decode(prompt) == HUMANEVAL[0]["prompt"]
    assert tokenizer.decode(answer) == text


@pytest.mark.parametrize("settings", [{"answer_loss": False}, {"engine": Answers("", "")}])
def test_there_is_none_if_it_is_off_or_the_engine_gives_no_likelihoods(
    tiny_base: Path, gsm8k: GSM8K, settings: dict[str, Any]
) -> None:
    assert evaluated(tiny_base, EvaluationSuite({"gsm8k": gsm8k}, **settings)).losses == {}


def test_an_answer_in_another_form_than_a_training_row_has_no_reference(
    chat_tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{**ROWS[0], "answer": answer} for answer in ("a <end> inside #### 1", "#### 1")]
    benchmark = GSM8K(str(write_jsonl(tmp_path / "gsm8k.jsonl", rows)), 2)
    special, plain = reference_pairs(benchmark, Renderer(chat_tokenizer, None))
    assert special is None
    assert plain is not None


def test_form_is_the_share_of_answers_in_the_asked_form(tiny_base: Path, gsm8k: GSM8K) -> None:
    suite = EvaluationSuite({"gsm8k": gsm8k}, engine=Answers("It is 5.", "#### 11"))
    found = evaluated(tiny_base, suite)
    assert {key: score.value for key, score in found.scores.items()} == {
        "gsm8k/flexible": 0.5,  # right, but not in the form
        "gsm8k/strict": 0.0,  # in the form, but wrong
        "gsm8k/boxed": 0.0,
    }
    assert (found.forms["math"].value, found.forms["math"].n) == (0.5, 2)
