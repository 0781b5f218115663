"""Reasoning before an answer is kept, and graded by no benchmark."""

from pathlib import Path
from typing import Any

import pytest
from benchmark_files import GSM8K, HUMANEVAL, IFEVAL
from conftest import write_jsonl

from sft_lab.data.rendering import Renderer
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark, Verdict
from sft_lab.evaluation.benchmarks import gsm8k
from sft_lab.evaluation.evaluator import Evaluator
from sft_lab.evaluation.generation import Decoding, Engine
from sft_lab.evaluation.reasoning import Completion, split_reasoning
from sft_lab.evaluation.scoring import grade_file
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.runs.contents import answers_table


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 8.", "It is 8."),
        ("<think>7?</think>It is 8.", "It is 8."),
        ("7?</think>\n\nIt is 8.", "It is 8."),  # the template has opened the block
        ("<think>a</think>7<think>b</think>8", "8"),
        ("<think>\n\n</think>\n\n    return 8", "    return 8"),  # indentation is code
        ("<think>Is it 8?", ""),
        ("\n<think>Is it 8?", ""),
        ("<think>a</think>\n<think>Is it 8?", ""),
        ("<think>a</think>", ""),
        ("Write <think> first.", "Write <think> first."),
        ("", ""),
    ],
)
def test_an_answer_is_what_follows_the_last_block(text: str, answer: str) -> None:
    found = split_reasoning(text)
    assert found.answer == answer
    assert found.reasoning + found.answer == text


def test_an_answer_may_begin_inside_a_block_that_the_prompt_opened() -> None:
    assert split_reasoning("Is it 8?", is_open=True) == Completion("", "Is it 8?")
    assert split_reasoning("Is it?</think>8", is_open=True) == Completion("8", "Is it?</think>")


DRAFT = "<think>Perhaps, say, #### 7.\n```python\ndef zero():\n    return 7\n```\n</think>\n\n"


@pytest.mark.parametrize(
    ("benchmark", "problems", "task_id", "answer", "score"),
    [
        ("gsm8k", GSM8K, "GSM8K/0", "#### 0", "strict"),
        ("gsm8k", GSM8K, "GSM8K/0", "It is 0.", "flexible"),
        ("humaneval", HUMANEVAL, "HumanEval/0", "    return 0", "pass_at_1"),
    ],
)
def test_score_grades_the_answer_alone(
    tmp_path: Path, benchmark: str, problems: Any, task_id: str, answer: str, score: str
) -> None:
    write_jsonl(tmp_path / "p.jsonl", problems)
    for text, right in ((DRAFT + answer, 1.0), ("<think>" + answer, 0.0)):
        write_jsonl(tmp_path / "c.jsonl", [{"task_id": task_id, "completion": text}])
        graded = grade_file(
            benchmark,
            str(tmp_path / "p.jsonl"),
            str(tmp_path / "c.jsonl"),
            sandbox="isolated_or_limited",
        )
        assert graded.scores[score].value == right
        assert graded.details["reasoning_cut"] == 1
        assert graded.details.get("reasoning_unclosed", 0) == 1 - right
    assert "1 completion was graded without the reasoning" in graded.table()


def test_score_follows_instructions_outside_the_reasoning(tmp_path: Path) -> None:
    row = IFEVAL[0] | {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write_jsonl(tmp_path / "p.jsonl", [row])
    text = "<think>\nNo commas, right, fine.\n</think>\n\nHello there"
    write_jsonl(tmp_path / "c.jsonl", [{"task_id": row["key"], "completion": text}])
    graded = grade_file("ifeval", str(tmp_path / "p.jsonl"), str(tmp_path / "c.jsonl"))
    assert graded.scores["prompt_strict"].value == 1.0


class Scripted(Engine):
    """Answers in order of the prompts, and keeps the stop strings that it was given."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.stop_strings: list[tuple[str, ...]] = []

    def complete(
        self, model: Any, prompts: Any, *, decoding: Decoding, samples: Any, **_: Any
    ) -> list[str]:
        self.stop_strings.append(decoding.stop_strings)
        each = decoding.num_samples if samples is None else 1
        return [self.texts[n % len(self.texts)] for n in range(len(prompts) * each)]


class Interview(Benchmark):
    """Asks twice; the second question holds the first answer."""

    score_names = ("seen",)

    def grade(self, items: Any, completions: Any) -> list[Verdict]:
        return [Verdict({"seen": "8" in text}, text) for text in completions]

    def follow_up(self, item: Any, completion: str) -> Any:
        if len(item.messages) > 1:
            return None
        answer = {"role": "assistant", "content": completion}
        return type(item)(f"{item.id}/2", (*item.messages, answer, item.messages[0]), item.row)


@pytest.fixture
def asked(tmp_path: Path) -> Interview:
    row = {"id": "a", "messages": [{"role": "user", "content": "What?"}]}
    return Interview(str(write_jsonl(tmp_path / "asked.jsonl", [row])), 8)


def evaluated(suite: EvaluationSuite, tokenizer: Any) -> list[Any]:
    evaluation = Evaluator(suite, Renderer(tokenizer, None)).evaluate(torch_module(), 0)
    return list(next(iter(evaluation.answers.values())))


def torch_module() -> Any:
    import torch

    return torch.nn.Linear(1, 1)


THINKING = "{# <think></think> #}"


def test_a_run_cuts_where_the_template_thinks_and_keeps_both_texts(
    asked: Interview, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Scripted("<think>7?\n\n</think>\n\nIt is 8.")
    plain = evaluated(EvaluationSuite({"a": asked}, engine=engine), chat_tokenizer)
    assert [a.completion for a in plain] == [engine.texts[0]] * 2
    assert "reasoning" not in answers_table(plain, lambda item: None)["columns"]

    template = THINKING + chat_tokenizer.chat_template
    monkeypatch.setattr(chat_tokenizer, "chat_template", template)
    decoding = {"a": Decoding(stop_strings=("\n\n", " 8"))}
    suite = EvaluationSuite({"a": asked}, engine=engine, decoding=decoding)
    first, second = evaluated(suite, chat_tokenizer)
    # Stop strings end the answer, not the reasoning.
    assert engine.stop_strings[-2:] == [(), ()]
    assert (first.reasoning, first.completion) == ("<think>7?\n\n</think>\n\n", "It is")
    assert second.item.messages[1]["content"] == "It is"
    table = answers_table([first, second], lambda item: None)
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert (row["reasoning"], row["completion"]) == (first.reasoning, first.completion)

    kept = EvaluationSuite({"a": asked}, engine=engine, cut_reasoning=False)
    assert evaluated(kept, chat_tokenizer)[0].completion == engine.texts[0]


def test_a_prompt_that_opens_a_block_makes_an_unclosed_answer_none(
    asked: Interview, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = "{% if add_generation_prompt %}<think>\n{% endif %}"
    monkeypatch.setattr(
        chat_tokenizer, "chat_template", THINKING + chat_tokenizer.chat_template + opens
    )
    suite = EvaluationSuite({"a": asked}, engine=Scripted("Is it 8?"))
    answers = evaluated(suite, chat_tokenizer)
    assert [(a.completion, a.reasoning) for a in answers] == [("", "Is it 8?")] * 2


def test_an_end_that_decoding_drops_is_refused(asked: Interview, chat_tokenizer: Any) -> None:
    from copy import deepcopy

    tokenizer = deepcopy(chat_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    suite = EvaluationSuite({"a": asked}, engine=Scripted("8"), cut_reasoning=True)
    with pytest.raises(RequestError, match=r"cut_reasoning: </think> is a special token"):
        suite.prompts(Renderer(tokenizer, None))  # before anything is loaded


def test_gsm8k_is_scored_after_the_reasoning_of_a_run(tmp_path: Path, chat_tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "gsm8k.jsonl", [{"question": "q", "answer": "#### 1,200"}])
    suite = EvaluationSuite(
        {"gsm8k": gsm8k.GSM8K(str(path), 8)},
        engine=Scripted("<think>#### 7</think>#### 1200"),
        cut_reasoning=True,
    )
    evaluation = Evaluator(suite, Renderer(chat_tokenizer, None)).evaluate(torch_module(), 0)
    assert evaluation.scores["gsm8k/strict"].value == 1.0
