"""Test what ``inspect`` prints about a config's stages, sources and samples."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_lab import Lab, Terminal


@pytest.fixture
def inspected(lab: Lab, four_rows: Path) -> Lab:
    """A lab whose config trains four rows of 18, 17, 16 and 15 tokens, each with 3 targets."""
    lab.write(
        "four.yaml",
        f"corpus: {{sources: {{four: {{path: {four_rows}}}}}, val_rows: 0}}\n"
        "data: {stages: {first: {mixture: {math: {rows: 2}, four: 1}}}}\n",
    )
    return lab


def test_the_plan_is_counted_by_source(inspected: Lab) -> None:
    outcome = inspected("inspect", "--config=tiny.yaml", "--config=four.yaml", "--json", "-n", "0")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    first, second = found["stages"]["first"], found["stages"]["second"]
    # Six rows in windows of four, then 24 of general with 6 of math.
    assert (first["steps"], first["passes"], second["steps"]) == (2, 1, 8)
    assert first["mixture"]["four"] == {
        "asked": 1,
        "rows": 4,
        "samples": 4,
        "tokens": 18 + 17 + 16 + 15,
        "target_tokens": 12,
    }
    assert first["mixture"]["math"]["samples"] == 2
    assert second["mixture"]["math"]["asked"] == "1/4"
    assert {name: part["samples"] for name, part in second["mixture"].items()} == {
        "general": 24,
        "math": 6,
    }
    assert found["sources"]["four"]["lengths"] == [15, 16, 17, 18]
    assert found["sources"]["four"]["dropped"] == {}
    assert found["samples"] == []


@pytest.fixture
def alone(lab: Lab, four_rows: Path) -> Lab:
    """A lab with a config of those four rows only."""
    lab.write(
        "alone.yaml",
        "model: {base: world://base}\n"
        f"corpus: {{sources: {{four: {{path: {four_rows}}}}}}}\n"
        "evaluation: {every_n_steps: 1, benchmarks: {}}\n"
        "data: {stages: {only: {mixture: {four: 1}, epochs: 2, lr: 1e-3}}}\n",
    )
    return lab


def test_rows_left_out_are_counted_by_reason(alone: Lab) -> None:
    outcome = alone("inspect", "--config=alone.yaml", "--corpus.max_length=16", "-n0")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    reason = "longer than max_length 16 (e.g. line 1 of four.jsonl)"
    assert f"four: 2 left out: {reason}" in lines
    assert outcome.err == ""  # reported once, on stdout
    table = [line.split() for line in lines]
    # Two rows, each trained twice: 2 (15 + 16) tokens.
    assert ["only", "four", "1", "2", "4", "100.0", "62", "100.0", "12", "100.0", "-"] in table
    # Four in the file are two left out, none held out, none in no stage, and two in a stage.
    assert ["four", "4", "2", "0", "0", "2"] in table
    assert ["four", "15", "16", "15", "16"] in table
    assert ["15", "█" * 40, "1"] in table


def test_nothing_is_wider_than_the_terminal(
    inspected: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("inspect", "--config=tiny.yaml", "--config=four.yaml", "-n0")
    wide = inspected(*command).out.splitlines()
    assert max(map(len, wide)) > 60
    monkeypatch.setenv("COLUMNS", "60")
    lines = inspected(*command).out.splitlines()
    assert max(map(len, lines)) <= 60
    heads = [line.split() for line in lines if line.startswith("stage ")]
    assert len(heads) == 2  # the columns that do not fit, under the same stages and sources
    assert heads[0][:3] == ["stage", "source", "asked"]
    assert heads[1][:2] == ["stage", "source"]
    assert heads[1][-1] == "steps"
    # Of 24 in the file none is left out or held out, 18 are in no stage; two of six are in both.
    assert ["math", "24", "0", "0", "18", "6"] in [line.split() for line in wide]


def test_control_characters_in_rows_are_escaped(alone: Lab) -> None:
    row = {"prompt": "a\033[2Jb\tc", "completion": "d\x9be\nf"}
    (alone.folder / "hostile.jsonl").write_text(json.dumps(row))
    assert (
        "<user>a\\x1b[2Jb\tc<end><assistant>⟦d\\x9be\nf<end>⟧"
        in alone("inspect", "--config=alone.yaml", "--corpus.sources.four.path=hostile.jsonl").out
    )


def test_samples_mark_trained_text(alone: Lab) -> None:
    command = ("inspect", "--config=alone.yaml", "-n=9")
    plain = alone(*command).out
    assert "18 tokens, 3 trained\n<user>What is 1+1?<end><assistant>⟦00<end>⟧\n" in plain
    assert plain.count("⟦") == 4
    terminal = Terminal()
    assert alone(*command, stream=terminal).code == 0
    green, dim, plain_again = "\033[32m", "\033[2m", "\033[0m"
    answer = f"{green}00{plain_again}{green}{dim}<end>{plain_again}"
    assert f"What is 1+1?{dim}<end><assistant>{plain_again}{answer}" in terminal.getvalue()


def test_the_samples_are_the_first_rows_in_training_order(lab: Lab) -> None:
    outcome = lab("inspect", "--config=tiny.yaml", "--json", "-n2")
    samples = json.loads(outcome.out)["samples"]
    shown = [(sample["stage"], sample["source"]) for sample in samples]
    assert shown[:2] == [("first", "math")] * 2
    assert sorted(shown[2:]) == [("second", "general")] * 2 + [("second", "math")] * 2
    trained = "".join(piece["text"] for piece in samples[0]["pieces"] if piece["trained"])
    assert trained.startswith("#### ")


def test_no_model_is_loaded(lab: Lab, tiny_base: Path) -> None:
    shutil.copytree(tiny_base, lab.folder / "tokenizer")
    (lab.folder / "tokenizer/model.safetensors").unlink()
    (lab.folder / "tokenizer/config.json").unlink()
    before = sorted(lab.folder.iterdir())
    outcome = lab("inspect", "--config=tiny.yaml", "--model.base=tokenizer")
    assert outcome.code == 0, outcome.err
    assert sorted(lab.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "inspect needs --config FILE"),
        (
            ["--config=tiny.yaml", "--stage=third"],
            "--stage: unknown stage 'third'; data.stages has",
        ),
        (["--config=tiny.yaml", "-n=-1"], "-n: must be 0 or more, got -1"),
        (["--config=tiny.yaml", "--stages=first"], "unknown flag --stages; did you mean --stage?"),
        (["--config=tiny.yaml", "--data.batch_size=x"], "data.batch_size must be an integer, 1"),
        (["--config=tiny.yaml", "--data.batchsize=4"], "did you mean 'data.batch_size'?"),
    ],
)
def test_a_wrong_request_is_refused(lab: Lab, arguments: list[str], message: str) -> None:
    outcome = lab("inspect", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_contamination_is_checked_against_all_items_not_only_measured_ones(
    alone: Lab,
) -> None:
    asked = [f"How many {word} are in the big old box by the door now?" for word in ("a", "b")]
    items = [
        {"id": word, "messages": [{"role": "user", "content": word}], "answer": "1"}
        for word in asked
    ]
    rows = [{"prompt": asked[1], "completion": "1"}]
    for name, written in (("items", items), ("rows", rows)):
        (alone.folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, written)))
    alone.write(
        "one.yaml",
        "evaluation: {benchmarks: {one: {class_path: "
        "sft_lab.evaluation.benchmarks.world.WorldMath, "
        "init_args: {path: items.jsonl, max_new_tokens: 4, num_examples: 1}}}}\n"
        "corpus: {sources: {four: {path: rows.jsonl}}}\n",
    )
    outcome = alone("inspect", "--config=alone.yaml", "--config=one.yaml", "--json", "-n0")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["sources"]["four"]["contaminated"] == {"one": 1}
