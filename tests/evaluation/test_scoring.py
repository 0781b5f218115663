"""The command ``score``, as its users meet it."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import GSM8K, HUMANEVAL, IFEVAL, MBPP, QUESTIONS
from conftest import write_jsonl

from sft_lab.commands.main import main
from sft_lab.metrics.intervals import bootstrap, wilson


class Scored:
    """One call of ``score``: its exit code, the object it prints, the rows it writes."""

    def __init__(self, code: int, out: str, err: str, path: Path) -> None:
        self.code, self.out, self.err = code, out, err
        self.found = json.loads(out) if out.startswith("{") else {}
        self.rows = [json.loads(line) for line in path.open()] if path.exists() else []

    def values(self) -> dict[str, float]:
        return {name: score["value"] for name, score in self.found["scores"].items()}


@pytest.fixture
def score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Scored]:
    def call(benchmark: str, problems: Any, completions: Any, *options: str) -> Scored:
        for name, rows in (("problems", problems), ("completions", completions)):
            write_jsonl(tmp_path / f"{name}.jsonl", rows)
        arguments = ["--problems", str(tmp_path / "problems.jsonl"), "--json"]
        arguments += ["--completions", str(tmp_path / "completions.jsonl")]
        out = tmp_path / "out.jsonl"
        try:
            code = main(["score", benchmark, *arguments, "--out", str(out), *options])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Scored(code, *capsys.readouterr(), out)

    return call


def answers(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"task_id": task_id, "completion": text} for task_id, text in pairs]


def test_gsm8k(score: Callable[..., Scored]) -> None:
    given = answers(("GSM8K/3", "#### 3"), ("GSM8K/9", "#### 9"), ("GSM8K/0", "it is 0"))
    scored = score("gsm8k", GSM8K, given)
    assert scored.code == 0
    (low, high), (loose_low, loose_high) = wilson(1, 2), wilson(2, 2)
    assert scored.found == {
        "benchmark": "gsm8k",
        "scores": {
            "flexible": {"value": 1.0, "low": loose_low, "high": loose_high, "n": 2},
            "strict": {"value": 0.5, "low": low, "high": high, "n": 2},
            "boxed": {"value": 0.0, "low": 0.0, "high": pytest.approx(1 - loose_low), "n": 2},
        },
        "missing": ["GSM8K/1", "GSM8K/2"],
        "unknown": ["GSM8K/9"],
    }
    assert [(row["task_id"], row["verdicts"]) for row in scored.rows] == [
        ("GSM8K/3", {"flexible": True, "strict": True, "boxed": False, "form": True}),
        ("GSM8K/9", None),
        ("GSM8K/0", {"flexible": True, "strict": False, "boxed": False, "form": False}),
    ]
    assert all(row["reason"] for row in scored.rows)


def test_several_answers_to_a_question_are_no_independent_ones(
    score: Callable[..., Scored],
) -> None:
    given = answers(*[("GSM8K/0", "#### 0")] * 3, ("GSM8K/1", "no"))
    strict = score("gsm8k", GSM8K, given).found["scores"]["strict"]
    low, high = bootstrap([1, 1, 1, 0], groups="aaab")
    assert strict == {"value": 0.75, "low": low, "high": high, "n": 4}


def test_the_order_of_a_file_does_not_matter(score: Callable[..., Scored]) -> None:
    given = answers(
        ("GSM8K/0", "#### 0"), ("GSM8K/0", "no"), ("GSM8K/1", "#### 1"), ("GSM8K/2", "no")
    )
    assert score("gsm8k", GSM8K, given).found == score("gsm8k", GSM8K, given[::-1]).found


@pytest.mark.parametrize(
    ("benchmark", "problems", "row"),
    [
        ("mbpp", MBPP, {"task_id": "Mbpp/11", "solution": "def add(a, b):\n    return a + b"}),
        ("mbpp", MBPP, {"task_id": 11, "completion": "def add(a, b):\n    return a + b"}),
        ("humaneval", HUMANEVAL, {"task_id": 0.0, "completion": "    return 0"}),
        ("humaneval", HUMANEVAL, {"task_id": "humaneval/0", "completion": "    return 0"}),
        ("gsm8k", GSM8K, {"task_id": "3", "completion": "#### 3"}),
        ("ifeval", IFEVAL, {"task_id": 7, "response": "THIS IS FINE AND IN CAPITALS"}),
    ],
)
def test_ids_and_keys_of_other_tools_are_read(
    score: Callable[..., Scored], benchmark: str, problems: Any, row: dict[str, Any]
) -> None:
    scored = score(benchmark, problems, [row], "--sandbox=isolated_or_limited")
    assert scored.found["unknown"] == []
    assert next(iter(scored.values().values())) == 1.0


def test_a_number_that_several_tasks_share_is_unknown(
    score: Callable[..., Scored], tmp_path: Path
) -> None:
    twice = [{**HUMANEVAL[0], "task_id": f"{name}/0"} for name in "AB"]
    given = answers(("0", "    return 0"), ("A/0", "    return 0"))
    assert score("humaneval", twice, given, "--sandbox=limited").found["unknown"] == ["0"]


@pytest.mark.parametrize(
    ("benchmark", "problems", "row", "expected"),
    [
        ("gsm8k", GSM8K, {"task_id": "test-1", "completion": ""}, "'GSM8K/0'"),
        ("mt_bench", QUESTIONS, None, "'MT-Bench/81/1'"),
    ],
)
def test_a_file_of_unknown_ids_shows_an_expected_one(
    score: Callable[..., Scored], benchmark: str, problems: Any, row: Any, expected: str
) -> None:
    refused = score(benchmark, problems, [row or judged(999, 1, "[[8]]")])
    assert (refused.code, refused.rows) == (2, [])
    assert f"expected are ids such as {expected}" in refused.err


def test_parquet_and_byte_order_marks_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    several = {"num_sentences": [3.0, None], "relation": ["less than", None]}
    kwargs = [dict(zip(several, pair, strict=True)) for pair in zip(*several.values(), strict=True)]
    row = {
        "key": 7,
        "prompt": "Few sentences, no comma.",
        "instruction_id_list": ["length_constraints:number_sentences", "punctuation:no_comma"],
        "kwargs": kwargs,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    given = [{"task_id": 7, "completion": "Fine."}, {"task_id": 8, "completion": "?"}]
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "c.parquet")
    lines = "\ufeff" + "".join(json.dumps(each) + "\r\n" for each in given)
    (tmp_path / "c.jsonl").write_text(lines, encoding="utf-8")
    for completions in ("c.parquet", "c.jsonl"):
        files = [f"--problems={tmp_path / 'p.parquet'}", f"--completions={tmp_path / completions}"]
        assert main(["score", "ifeval", "--json", *files]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["scores"]["instruction_strict"]["value"] == 1.0
        assert found["unknown"] == ["8"]
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    files = [f"--problems={tmp_path / 'p.parquet'}", f"--completions={tmp_path / 'c.parquet'}"]
    assert main(["score", "ifeval", *files]) == 2
    assert "cannot be read as Parquet" in capsys.readouterr().err


def test_humaneval_with_one_answer_a_problem(score: Callable[..., Scored]) -> None:
    given = answers(("HumanEval/0", "    return 0"), ("HumanEval/1", "    return 0"))
    scored = score("humaneval", HUMANEVAL, given, "--sandbox=limited")
    low, high = wilson(1, 2)
    half = {"value": 0.5, "low": low, "high": high, "n": 2}
    assert scored.found["scores"] == {"pass@1": half, "pass@1_official": half}
    assert [row["verdicts"] for row in scored.rows] == [
        {"passed": passed, "passed_official": passed, "form": False}  # not in a code block
        for passed in (True, False)
    ]
    assert scored.rows[1]["reason"].startswith("AssertionError")
    assert scored.found["sandbox"] == "limited"


def test_pass_at_k_goes_up_to_the_smallest_number_of_answers(score: Callable[..., Scored]) -> None:
    right, wrong = "    return 0", "    return 7"
    given = answers(
        *[("HumanEval/0", right)] * 2,
        *[("HumanEval/0", wrong)] * 10,
        *[("HumanEval/1", wrong)] * 11,
    )
    scored = score("humaneval", HUMANEVAL, given, "--sandbox=limited")
    # 1 - C(10, 10) / C(12, 10) = 1 - 1 / 66 for the first, 0 for the second
    expected = {"pass@1": (2 / 12) / 2, "pass@10": (1 - 1 / 66) / 2}
    expected |= {f"{name}_official": value for name, value in expected.items()}
    assert scored.values() == pytest.approx(expected)
    assert {found["n"] for found in scored.found["scores"].values()} == {2}


def test_mbpp_grades_its_test_split(score: Callable[..., Scored]) -> None:
    given = answers(
        ("MBPP/11", "[BEGIN]\ndef add(a, b):\n  return a + b\n[DONE]\nNext"),
        ("MBPP/12", "```python\ndef add(a, b):\n  return a - b\n```"),
    )
    scored = score("MBPP", MBPP, given, "--sandbox=limited")
    assert scored.values() == {"pass@1": 0.5}
    assert (scored.found["benchmark"], scored.found["missing"]) == ("mbpp", [])
    assert scored.found["sandbox"] == "limited"


def test_ifeval(score: Callable[..., Scored]) -> None:
    # Loosely the first line is left out, and with it the comma and the small letters.
    scored = score("ifeval", IFEVAL, answers(("IFEval/7", "Sure, here:\nCAPITALS")))
    assert scored.values() == {
        "prompt_strict": 0.0,
        "prompt_loose": 1.0,
        "instruction_strict": 0.0,
        "instruction_loose": 1.0,
    }
    assert scored.found["scores"]["instruction_loose"]["n"] == 2
    assert scored.rows[0]["verdicts"] == {"strict": [False, False], "loose": [True, True]}


def test_ifeval_with_several_answers_bootstraps_over_prompts(score: Callable[..., Scored]) -> None:
    problems = [IFEVAL[0], {**IFEVAL[0], "key": 8}]
    given = answers(*[("IFEval/7", "CAPITALS")] * 2, ("IFEval/8", "small, and with a comma"))
    found = score("ifeval", problems, given).found["scores"]
    low, high = bootstrap([1, 1, 0], groups="aab")
    assert found["prompt_strict"] == {"value": 2 / 3, "low": low, "high": high, "n": 3}
    low, high = bootstrap([1, 1, 1, 1, 0, 0], groups="aaaabb")
    assert found["instruction_strict"] == {"value": 2 / 3, "low": low, "high": high, "n": 6}


def judged(question_id: int, turn: int, text: str, model: str = "m") -> dict[str, Any]:
    return {"question_id": question_id, "model": model, "turn": turn, "judgment": text, "score": 1}


def test_mt_bench_is_read_from_a_judge_s_texts(score: Callable[..., Scored]) -> None:
    given = [
        judged(81, 1, "Good. Rating: [[8]]"),
        judged(81, 2, "Rating: [6.5]"),
        judged(101, 1, "No idea."),
        judged(999, 1, "Rating: [[9]]"),
    ]
    scored = score("mt-bench", QUESTIONS, given)
    assert scored.values() == {"mean": 7.25, "turn_1": 8, "turn_2": 6.5, "writing": 7.25}
    assert scored.found["missing"] == ["MT-Bench/101/2"]
    assert scored.found["unknown"] == ["MT-Bench/999/1"]
    assert scored.found["unparsable"] == 1  # of the questions that are there
    assert [(row["task_id"], row["verdicts"]) for row in scored.rows] == [
        ("MT-Bench/81/1", {"rating": 8.0}),
        ("MT-Bench/81/2", {"rating": 6.5}),
        ("MT-Bench/101/1", None),
        ("MT-Bench/999/1", None),
    ]


def test_a_model_is_named_where_a_file_judges_several(score: Callable[..., Scored]) -> None:
    given = [judged(81, 1, "[[8]]"), judged(81, 1, "[[2]]", model="other")]
    refused = score("mt_bench", QUESTIONS, given)
    assert (refused.code, refused.rows) == (2, [])
    assert "several models: m, other" in refused.err
    assert score("mt_bench", QUESTIONS, given, "--model=other").values()["mean"] == 2


def test_people_get_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems, completions = tmp_path / "p.jsonl.gz", tmp_path / "c.jsonl.gz"
    problems.write_bytes(gzip.compress("\n".join(map(json.dumps, GSM8K)).encode()))
    rows = answers(("GSM8K/1", "#### 1"), ("GSM8K/8", "#### 8"))
    completions.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    files = [f"--problems={problems}", f"--completions={completions}"]
    assert main(["score", "gsm8k", *files]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [
        ["gsm8k", "score", "low", "high", "n"],
        ["flexible", "100.0", "20.7", "100.0", "1"],
    ]
    assert [" ".join(line) for line in lines[4:]] == [
        "3 tasks have no completion",
        "1 completion is in no score: an unknown task, or no rating",
        "1 task is unknown, such as 'GSM8K/8'; expected are ids such as 'GSM8K/0'",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task_id": "GSM8K/0"}], "line 1: key 'completion' must be a string; it is missing"),
        (
            [{"task_id": 0.5, "completion": ""}],
            "line 1: key 'task_id' must be a string or an integer; got 0.5",
        ),
        ([{"task_id": "GSM8K/0", "completion": None}], "'completion' must be a string; got None"),
        ([["GSM8K/0", ""]], "expected an object with keys"),
        ([], "has no rows"),
    ],
)
def test_a_wrong_row_of_completions_is_named(
    score: Callable[..., Scored], rows: Any, message: str
) -> None:
    scored = score("gsm8k", GSM8K, rows)
    assert (scored.code, scored.out, scored.rows) == (2, "", [])
    assert "completions.jsonl" in scored.err
    assert message in scored.err


def test_wrong_requests_are_named(score: Callable[..., Scored], tmp_path: Path) -> None:
    given = answers(("GSM8K/0", "#### 0"))
    assert "no benchmark 'gsm'; there are gsm8k, humaneval" in score("gsm", GSM8K, given).err
    assert "--model selects one of" in score("gsm8k", GSM8K, given, "--model=m").err
    missing = score("humaneval", GSM8K, given, "--sandbox=limited").err
    keys = "'task_id', 'prompt', 'entry_point', 'test', 'canonical_solution'"
    assert f"keys {keys} are missing; a row of HumanEval is " in missing
    wrong = score("humaneval", HUMANEVAL, given, "--sandbox=strict")
    assert "sandbox must be isolated, isolated_or_limited or limited, got 'strict'" in wrong.err
    taken = score("gsm8k", GSM8K, given, f"--out={tmp_path / 'completions.jsonl'}")
    assert "is one of the input files" in taken.err
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 1
    nowhere = score("gsm8k", GSM8K, given, f"--out={tmp_path / 'no/out.jsonl'}")
    assert "--out" in nowhere.err
    assert nowhere.code == 2


@pytest.mark.parametrize("benchmark", ["humaneval", "ifeval"])
def test_real_completions_are_graded_as_their_labels_say(
    benchmark: str, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    problems, labelled = {
        "humaneval": ("humaneval/HumanEval.jsonl.gz", "humaneval_wizardcoder15b.jsonl.gz"),
        "ifeval": ("ifeval/input_data.jsonl", "ifeval_gpt4_first270.jsonl.gz"),
    }[benchmark]
    completions = shared_data(f"../labelled/{labelled}")
    files = [f"--problems={shared_data(problems)}", f"--completions={completions}"]
    out = tmp_path / "out.jsonl"
    assert main(["score", benchmark, *files, f"--out={out}", "--sandbox=isolated_or_limited"]) == 0
    labels = [json.loads(line) for line in gzip.decompress(completions.read_bytes()).splitlines()]
    for label, row in zip(labels, map(json.loads, out.open()), strict=True):
        if benchmark == "humaneval":
            expected = dict.fromkeys(("passed", "passed_official"), label["passed"])
            del row["verdicts"]["form"]  # the labels say nothing about it
        else:
            kinds = ("strict", "loose")
            expected = {kind: label[f"follow_instruction_list_{kind}"] for kind in kinds}
            if label["task_id"] == "IFEval/1122":  # asks for "#", where the label drew a letter
                expected["loose"] = [True, True]
        assert (row["task_id"], row["verdicts"]) == (label["task_id"], expected)


def test_out_is_written_to_what_is_there(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", GSM8K)
    write_jsonl(tmp_path / "c.jsonl", answers(("GSM8K/1", "#### 1")))
    files = [f"--problems={tmp_path / 'p.jsonl'}", f"--completions={tmp_path / 'c.jsonl'}"]

    def out(path: Path) -> int:
        return main(["score", "gsm8k", *files, f"--out={path}"])

    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    assert out(tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink()
    row = json.loads((tmp_path / "target").read_text())
    assert row["task_id"] == "GSM8K/1"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert out(tmp_path / "pipe") == 0
    assert json.loads(os.read(reader, 10_000)) == row
    os.close(reader)
    assert out(tmp_path / "rows.gz") == 0
    assert json.loads(gzip.decompress((tmp_path / "rows.gz").read_bytes())) == row
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("line", ["[" * 200_000, '{"n": ' + "9" * 5000 + "}"])
def test_json_that_cannot_be_read_is_named(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "p.jsonl", GSM8K)
    (tmp_path / "c.jsonl").write_text(line)
    files = [f"--problems={tmp_path / 'p.jsonl'}", f"--completions={tmp_path / 'c.jsonl'}"]
    assert main(["score", "gsm8k", *files]) == 2
    assert "c.jsonl, line 1 cannot be parsed as JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "def f(:"}, "key 'code' must be Python"),
        ({"code": "\0"}, "key 'code' must be Python"),
        ({"test_imports": [3]}, "key 'test_imports' must be a string, or a list of them, got [3]"),
        ({"task_id": True}, "key 'task_id' must be"),
        ({"text": 5}, "key 'text' (or 'prompt'"),
    ],
)
def test_a_wrong_problem_of_mbpp_is_named(
    score: Callable[..., Scored], changes: dict[str, Any], message: str
) -> None:
    scored = score("mbpp", [{**MBPP[1], **changes}], answers(("MBPP/11", "")), "--sandbox=limited")
    assert (scored.code, scored.rows) == (2, [])
    assert message in scored.err
