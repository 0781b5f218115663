"""A benchmark and an engine, each a class of one file outside the package, named by a config."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from tiny_lab import EVALUATED_STEPS, Lab

SEAMS = '''
from sft_lab.evaluation.benchmark import Answer, Benchmark, Verdict
from sft_lab.evaluation.generation import Engine


class Interview(Benchmark):
    """Asks a question, then the same again; a mark is the length of an answer over its limit."""

    score_names = ("length", "second_turn")
    turns = 2
    chance = 0.1

    def grade(self, items, completions):
        return [Verdict({"share": len(text) / 100}, text) for text in completions]

    def follow_up(self, item, completion):
        if len(item.messages) > 1:
            return None
        answer = {"role": "assistant", "content": completion}
        turn = (*item.messages, answer, item.messages[0])
        return type(item)(f"{item.id} again", turn, item.row)

    def scored_marks(self, item, verdict):
        names = ("length", "second_turn") if item.id.endswith("again") else ("length",)
        return {name: [verdict.marks["share"]] for name in names}

    def mark_of(self, score_name):
        return "share" if score_name == "length" else None


class Choice(Benchmark):
    """The share of items whose right option is likelier than the wrong one."""

    score_names = ("accuracy",)
    needs_likelihoods = True
    row_fields = {"options": list}

    def measure(self, items, prompts, model):
        encode = lambda text: model.renderer.tokenizer(text)["input_ids"]
        pairs = [
            (prompt, encode(option))
            for item, prompt in zip(items, prompts)
            for option in item.row["options"]
        ]
        values = [value for value, _ in model.log_likelihoods(pairs)]
        found = zip(items, values[::2], values[1::2])
        return [
            [Answer(item, f"{a:.3f} {b:.3f}", Verdict({"accuracy": a > b}, "likelihoods"))]
            for item, a, b in found
        ]

    def grade(self, items, completions):
        wanted = [item.row["options"][0] for item in items]
        return [Verdict({"accuracy": t == w}, t) for t, w in zip(completions, wanted)]


class Parrot(Engine):
    """Answers every prompt with the number of evaluations it has served."""

    name = "parrot"

    def __init__(self, word: str) -> None:
        self.word, self.served = word, 0

    def serving(self, model, step, dtype):
        self.served += 1
        return super().serving(model, step, dtype)

    def complete(self, model, prompts, *, decoding, **settings):
        return [f"{self.word} {self.served}"] * len(prompts)

    def state_dict(self):
        return {"served": self.served}

    def load_state_dict(self, state_dict):
        self.served = state_dict["served"]
'''
CONFIG = """
evaluation:
  primary: {math: interview/length}
  benchmarks:
    interview:
      class_path: evaluation_seams.Interview
      init_args: {path: asked.jsonl, source: math, max_new_tokens: 3}
    choice:
      class_path: evaluation_seams.Choice
      init_args: {path: asked.jsonl, source: general, max_new_tokens: 3}
"""
PARROT = "--evaluation.engine={class_path: evaluation_seams.Parrot, init_args: {word: polly}}"
ASKED = [
    {
        "id": f"q{n}",
        "messages": [{"role": "user", "content": f"What is {n}?"}],
        "options": [f"{n}", f"{n + 1}"],
    }
    for n in range(3)
]


@pytest.fixture
def seams(lab: Lab) -> Lab:
    lab.write("evaluation_seams.py", SEAMS)
    lab.write("seams.yaml", CONFIG)
    write_jsonl(lab.folder / "asked.jsonl", ASKED)
    return lab


def artifact(lab: Lab, path: str) -> Any:
    """Return a JSON artifact of the newest run."""
    file = lab.store.client.download_artifacts(lab.runs[0].info.run_id, path)
    return json.loads(Path(file).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_benchmark_of_turns_and_one_of_likelihoods_are_run_scored_and_compared(
    seams: Lab,
) -> None:
    for seed in (0, 1):
        outcome = seams.fit("--config=seams.yaml", f"--seed_everything={seed}")
        assert outcome.code == 0, outcome.err
    run_id = seams.runs[0].info.run_id
    assert list(seams.points("interview/length", run_id)) == EVALUATED_STEPS
    assert list(seams.points("choice/accuracy", run_id)) == EVALUATED_STEPS
    table = artifact(seams, "answers/step_000012/interview.json")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["id"], row["item"]) for row in rows[:2]] == [("q0", "q0"), ("q0 again", "q0")]
    recorded = artifact(seams, "record.json")["benchmarks"]["interview"]
    assert recorded["marks"] == {"length": "share", "second_turn": None}
    assert (recorded["chance"], recorded["turns"]) == (0.1, 2)
    compared = seams("compare", *(run.info.run_id for run in seams.runs), "--json")
    assert compared.code == 0, compared.err
    assert "interview/length" in compared.out
    given = [{"task_id": "q0", "completion": "0"}, {"task_id": "q1", "completion": "no"}]
    write_jsonl(seams.folder / "given.jsonl", given)
    files = ("--problems=asked.jsonl", "--completions=given.jsonl", "--json")
    scored = seams("score", "evaluation_seams.Choice", *files)
    assert scored.code == 0, scored.err
    found = json.loads(scored.out)
    assert (found["scores"]["accuracy"]["value"], found["missing"]) == (0.5, ["q2"])


@pytest.mark.slow
def test_an_engine_answers_and_its_state_is_resumed(seams: Lab) -> None:
    arguments = ("--config=scripted.yaml", PARROT)
    outcome = seams.fit(*arguments)
    assert outcome.code == 0, outcome.err
    for count, step in enumerate(EVALUATED_STEPS, start=1):
        table = seams.json(f"answers/step_{step:06d}/scripted.json")
        assert {row[table["columns"].index("completion")] for row in table["data"]} == {
            f"polly {count}"
        }
    assert seams.json("record.json")["benchmarks"]["scripted"]["weights"] == "parrot"
    checkpoint = f"--ckpt_path={seams.checkpoint}"
    outcome = seams("validate", "--config=tiny.yaml", *arguments, checkpoint)
    assert outcome.code == 0, outcome.err
    scored = artifact(seams, "answers/step_000012/scripted.json")
    assert "polly 6" in str(scored)  # the last checkpoint was written after five evaluations


def test_an_engine_without_likelihoods_is_refused_where_they_are_needed(seams: Lab) -> None:
    refused = seams.fit("--config=seams.yaml", PARROT)
    assert refused.code == 2
    assert "evaluation.benchmarks.choice: Choice needs likelihoods" in refused.err
    assert "evaluation.engine parrot" in refused.err


def test_a_primary_score_is_one_of_its_source(seams: Lab) -> None:
    refused = seams.fit("--config=seams.yaml", "--evaluation.primary={math: choice/accuracy}")
    assert refused.code == 2
    assert "evaluation.primary.math: choice/accuracy" in refused.err
    assert "interview/length, interview/second_turn" in refused.err


def test_a_benchmark_that_is_not_there_is_refused_by_score(seams: Lab) -> None:
    files = ("--problems=asked.jsonl", "--completions=asked.jsonl")
    assert "score: no benchmark 'trivia'" in seams("score", "trivia", *files).err
    assert "cannot be imported" in seams("score", "evaluation_seams.Trivia", *files).err
    refused = seams("score", "evaluation_seams.Parrot", *files)
    assert refused.code == 2
    assert "must be a subclass of sft_lab's Benchmark" in refused.err
