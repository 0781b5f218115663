"""Test MT-Bench inside a run, rated by a judge on loopback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_jsonl
from judge_server import Reply, Server, completion
from tiny_lab import Lab

pytestmark = pytest.mark.slow

CONFIG = """
evaluation:
  benchmarks:
    mt_bench:
      class_path: sft_lab.evaluation.benchmarks.mt_bench.benchmark.MTBench
      init_args:
        path: question.jsonl
        references: references.jsonl
        judge_prompts: {prompts}
        judge:
          class_path: sft_lab.evaluation.judge.judge.Judge
          init_args: {{model: judge, base_url: "{url}", cache: judgements, max_tries: 1}}
        max_new_tokens: 3
"""
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    {"question_id": 101, "category": "math", "turns": ["Add.", "More."]},
]
REFERENCES = [{"question_id": 101, "choices": [{"index": 0, "turns": ["2", "3"]}]}]


@pytest.fixture
def judged(lab: Lab, server: Server, shared_data: Callable[[str], Path]) -> Lab:
    write_jsonl(lab.folder / "question.jsonl", QUESTIONS)
    write_jsonl(lab.folder / "references.jsonl", REFERENCES)
    prompts = shared_data("mt_bench/judge_prompts.jsonl")
    lab.write("mt_bench.yaml", CONFIG.format(prompts=prompts, url=server.url))
    return lab


def test_both_turns_are_answered_and_rated_in_the_run(judged: Lab, server: Server) -> None:
    asked: list[str] = []

    def reply_to(prompt: str) -> Reply:
        asked.append(prompt)
        return Reply(completion("Rating: [[7]]"))

    server.reply_to = reply_to  # type: ignore[method-assign]
    outcome = judged.fit("--config=mt_bench.yaml", "--evaluation.every_n_steps=100")
    assert outcome.code == 0, outcome.err
    assert judged.points("mt_bench/mean") == {0: 7, 5: 7, 12: 7}
    assert judged.counts("mt_bench/math")[12] == 2
    record = judged.json("record.json")["benchmarks"]["mt_bench"]
    assert record["decoding"]["temperature"] == {"writing": 0.7, "math": 0.0}
    table = judged.json("answers/step_000012/mt_bench.json")
    columns = table["columns"]
    turns = {row[0]: dict(zip(columns, row, strict=True)) for row in table["data"]}
    assert list(turns) == [f"MT-Bench/{q}/{turn}" for q in (81, 101) for turn in (1, 2)]
    assert [row["prompt"] for row in turns.values()] == ["Write.", "Again.", "Add.", "More."]
    assert [row["item"] for row in turns.values()] == [f"MT-Bench/{q}" for q in (81, 81, 101, 101)]
    # The second judgement includes the model's own first answer.
    first, second = (turns[f"MT-Bench/81/{turn}"]["completion"] for turn in (1, 2))
    shown = [text for text in asked if "Again." in text and first in text]
    assert any(second in text for text in shown)
    # Ratings from 1 to 10 enter no average with other scores.
    last = judged.run.data.metrics
    assert last["average/score"] == last["world_math/format_free"]
    assert "mt_bench 7.00 [7.00, 7.00]" in outcome.out


def test_a_judgement_without_a_rating_is_in_no_score(judged: Lab, server: Server) -> None:
    server.reply_to = lambda prompt: Reply(  # type: ignore[method-assign]
        completion("No idea." if "Add." in prompt else "[[4]]")
    )
    outcome = judged("validate", "--config=tiny.yaml", "--config=mt_bench.yaml")
    assert outcome.code == 0, outcome.err
    assert judged.points("mt_bench/mean") == {0: 4}
    assert judged.counts("mt_bench/mean") == {0: 2}
    assert "mt_bench/math" not in judged.run.data.metrics


def test_a_missing_endpoint_is_reported_before_training(judged: Lab) -> None:
    key = "--evaluation.benchmarks.mt_bench.init_args.judge.init_args.base_url"
    outcome = judged.fit("--config=mt_bench.yaml", f"{key}=http://127.0.0.1:9/v1")
    assert outcome.code == 2
    assert "evaluation.benchmarks.mt_bench: " in outcome.err
    assert "http://127.0.0.1:9/v1" in outcome.err
    assert judged.runs == []


def test_a_question_without_its_reference_is_named(judged: Lab) -> None:
    (judged.folder / "references.jsonl").write_text(
        json.dumps({**REFERENCES[0], "question_id": 7}) + "\n"
    )
    outcome = judged.fit("--config=mt_bench.yaml")
    assert outcome.code == 2
    assert "Question 101 of category 'math' has no reference answer" in outcome.err
