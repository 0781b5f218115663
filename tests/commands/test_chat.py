"""Talk to the stages of the tiny run, and let them answer a file."""

import io
import json
import re
import sys

import pytest
from conftest import write_jsonl
from tiny_lab import FinishedRun, Lab

RUN = "tiny seed 0"
SHORT = "--max_new_tokens=6"
PROMPT = "math: what is 1 plus 1?"


@pytest.fixture
def store(finished: FinishedRun) -> str:
    return f"--tracking_uri=sqlite:///{finished.lab.folder}/mlruns/mlflow.db"


@pytest.fixture
def run_name(finished: FinishedRun) -> str:
    return str(finished.lab.run.info.run_name)


def test_a_stage_answers_as_it_did_in_its_evaluation(
    finished: FinishedRun, lab: Lab, store: str, run_name: str
) -> None:
    table = finished.lab.json("answers/step_000012/world_math.json")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    write_jsonl(
        lab.folder / "asked.jsonl", [{"task_id": r["id"], "prompt": r["prompt"]} for r in rows]
    )
    outcome = lab(
        "generate",
        run_name,
        "--prompts=asked.jsonl",
        "--out=answers.jsonl",
        "--max_new_tokens=4",
        store,
    )
    assert outcome.code == 0, outcome.err
    assert f"4 answers of {run_name}@second written to answers.jsonl" in outcome.err
    answers = [json.loads(line) for line in (lab.folder / "answers.jsonl").read_text().splitlines()]
    assert [a["completion"] for a in answers] == [r["completion"] for r in rows]
    assert [a["task_id"] for a in answers] == [r["id"] for r in rows]
    outcome = lab("chat", run_name, f"--prompt={rows[0]['prompt']}", "--max_new_tokens=4", store)
    assert outcome.out == rows[0]["completion"] + "\n"


def test_two_stages_answer_side_by_side(
    lab: Lab, store: str, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPT}\n/reset\n{PROMPT}\n"))
    monkeypatch.setenv("COLUMNS", "80")
    outcome = lab("chat", f"{run_name}@first", f"{run_name}@base", SHORT, store)
    assert outcome.code == 0, outcome.err
    half = len(outcome.out) // 2
    assert outcome.out[:half] == outcome.out[half:]  # after /reset nothing is remembered
    assert f"{run_name}@first" in outcome.out
    assert f"{run_name}@base" in outcome.out


@pytest.mark.parametrize(
    ("stage", "message"),
    [("@third", "has no stage 'third'; it has base, first, second."), ("x@first", "no run")],
)
def test_a_stage_that_was_not_kept_is_refused(
    lab: Lab, store: str, run_name: str, stage: str, message: str
) -> None:
    outcome = lab("chat", f"{run_name}{stage}", "--prompt=a", store)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 1: expected a text under 'prompt', .* got {'text': 'a'}"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "must end with the user's turn"),
    ],
)
def test_a_row_without_a_prompt_is_named(lab: Lab, row: dict[str, object], message: str) -> None:
    write_jsonl(lab.folder / "asked.jsonl", [row])
    outcome = lab("generate", "any", "--prompts=asked.jsonl", "--out=o.jsonl")
    assert outcome.code == 2
    assert re.search(message, outcome.err)
