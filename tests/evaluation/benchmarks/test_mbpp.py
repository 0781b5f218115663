"""Test the grading of MBPP's answers by both of its scores."""

from pathlib import Path

from benchmark_files import MBPP as ROWS
from conftest import write_jsonl

from sft_lab.evaluation.benchmarks.mbpp import MBPP

CODE = "def add(a, b):\n    return a + b\n"


def test_a_three_shot_answer_is_graded_officially_up_to_done(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "task_id": task_id} for task_id in (2, 3, 4, 11)]
    path = write_jsonl(tmp_path / "mbpp.jsonl", rows)
    benchmark = MBPP(str(path), 1, prompt="three_shot", sandbox="isolated_or_limited")
    answers = [f"{CODE}[DONE]\nYou are", f"```python\n{CODE}```", f"[BEGIN]\n{CODE}[DONE]", "x = ("]
    verdicts = benchmark.grade(benchmark.items() * 4, answers)
    assert [v.mark("passed") for v in verdicts] == [1, 1, 1, 0]
    assert [v.mark("passed_official") for v in verdicts] == [1, 0, 0, 0]
    assert [v.mark("form") for v in verdicts] == [1, 0, 0, 0]
    assert list(benchmark.agrees_with()) == ["pass_at_1_official"] == [benchmark.strict_score]
    reference = benchmark.reference_answer(benchmark.items()[0])
    [verdict] = benchmark.grade(benchmark.items(), [reference])
    assert verdict.marks == {"passed": True, "passed_official": True, "form": True}


def test_a_chat_answer_has_no_official_grade(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mbpp.jsonl", ROWS)
    benchmark = MBPP(str(path), 1, sandbox="isolated_or_limited")
    [verdict] = benchmark.grade(benchmark.items()[:1], [CODE])
    assert verdict.marks == {"passed": True}
    assert benchmark.score_names == ("pass_at_1",)
