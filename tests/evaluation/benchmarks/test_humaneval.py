import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from sft_lab.evaluation.benchmark import Item
from sft_lab.evaluation.benchmarks import code_benchmark
from sft_lab.evaluation.benchmarks.humaneval import HumanEval
from sft_lab.evaluation.sandbox.sandbox import (
    Program,
    ProgramResult,
    isolation_fault,
    run_programs,
)


@pytest.mark.skipif(isolation_fault() is not None, reason="no isolation here")
def test_the_prompt_s_helpers_cannot_be_redefined(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("humaneval/HumanEval.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    benchmark = HumanEval(path=str(path), max_new_tokens=1)
    cheats = {
        32: ("poly", "lambda xs, x: 0", "lambda xs: 0"),
        38: ("encode_cyclic", "lambda s: s", "lambda s: s"),
        50: ("encode_shift", "lambda s: s", "lambda s: s"),
    }
    for number, (helper, redefined, cheat) in cheats.items():
        row = rows[number]
        item = Item(row["task_id"], (), row)
        answer = f"{row['prompt']}    pass\n{helper} = {redefined}\n{row['entry_point']} = {cheat}"
        right = row["prompt"] + row["canonical_solution"]
        verdicts = benchmark.grade([item, item], [answer, right])
        assert [verdict.mark("passed") for verdict in verdicts] == [0, 1]
        # The official harness tests an answer with what it makes of the helpers.
        assert [verdict.mark("passed_official") for verdict in verdicts] == [1, 1]


ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef root(n):\n    """Return the whole root of n."""\n',
    "entry_point": "root",
    "test": "def check(f):\n    assert f(17) == 4\n    assert f(math.pi) == 1\n",
    "canonical_solution": "    return math.isqrt(int(n))\n",
}
BODY = ROW["canonical_solution"]
FENCED = f"```python\n{ROW['prompt']}{BODY}```"


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "p.jsonl", [ROW])


@pytest.mark.parametrize(
    ("tail", "official"),
    [
        ("", True),
        ("\n\ndef other():\n    return 1\n", True),
        ("\n\ndef main(", False),  # cut off, as are the next four
        ("\n\ndef main():", False),
        ("\n\nif __name__ == '__main__':\n    print(root(", False),
        ('\n\ndef main():\n    """Ask for a', False),
        ("\n\nCASES = [(1, 1),", False),
        ("\n\nNow we can test it.", False),
        ("\n```\n\nIt counts.", False),
        ("\n\nroot(", False),
        ("\n\nprint(roots(4))", False),  # Python, but it fails
    ],
)
def test_a_broken_tail_fails_officially_and_is_cut_off_otherwise(
    problem: Path, tail: str, official: bool
) -> None:
    benchmark = HumanEval(str(problem), max_new_tokens=1, sandbox="isolated_or_limited")
    [verdict] = benchmark.grade(benchmark.items(), [BODY.rstrip("\n") + tail])
    assert verdict.marks == {"passed": True, "passed_official": official, "form": False}
    assert ("official: " in verdict.reason) is not official


def test_a_continuation_ends_officially_where_the_source_stops_sampling(problem: Path) -> None:
    benchmark = HumanEval(str(problem), 1, prompt="continuation", sandbox="isolated_or_limited")
    answers = [BODY + tail for tail in ("\ndef main(", "\n#\nx", "\nx = (", "\nclass", "\nwhile")]
    verdicts = benchmark.grade(benchmark.items() * 5, answers)
    assert [v.mark("passed_official") for v in verdicts] == [1, 1, 0, 1, 0]
    assert [v.mark("form") for v in verdicts] == [1, 1, 0, 1, 0]
    assert benchmark.strict_score == "pass_at_1_official"


def test_a_chat_answer_is_taken_as_it_is(problem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[Program]] = []

    def run(programs: Sequence[Program], **limits: Any) -> list[ProgramResult]:
        ran.append(programs)
        return run_programs(programs, **limits)

    monkeypatch.setattr(code_benchmark, "run_programs", run)
    benchmark = HumanEval(str(problem), 1, sandbox="isolated_or_limited")
    whole = f"{ROW['prompt']}\n{BODY}  # done\n"
    verdicts = benchmark.grade(benchmark.items() * 4, [BODY, whole, FENCED, whole])
    assert [v.mark("passed") for v in verdicts] == [1, 1, 1, 1]
    assert [v.mark("passed_official") for v in verdicts] == [1, 1, 0, 1]
    assert [v.mark("form") for v in verdicts] == [0, 0, 1, 0]
    assert benchmark.strict_score is None  # the official score wants another form than the prompt
    # The body, and the whole function after its prompt in every layout: each runs once.
    assert len(ran[0]) == 2
    scores = benchmark.scores(benchmark.items() * 4, verdicts)
    assert {name: score.value for name, score in scores.items()} == {
        "pass_at_1": 1.0,
        "pass_at_1_official": 0.75,
    }


@pytest.mark.parametrize("prompt", ["chat", "continuation"])
def test_the_reference_answer_is_right_and_in_form(problem: Path, prompt: Any) -> None:
    benchmark = HumanEval(str(problem), 1, prompt=prompt, sandbox="isolated_or_limited")
    [item] = benchmark.items()
    [verdict] = benchmark.grade([item], [benchmark.reference_answer(item)])
    official = prompt == "continuation"
    assert verdict.marks == {"passed": True, "passed_official": official, "form": True}


@pytest.mark.parametrize("answer", [FENCED + "\n```python\nroot(4)\n```", f"```python\n{BODY}```"])
def test_two_blocks_or_a_body_alone_are_not_the_form_that_chat_asks_for(
    problem: Path, answer: str
) -> None:
    benchmark = HumanEval(str(problem), 1, sandbox="isolated_or_limited")
    [verdict] = benchmark.grade(benchmark.items(), [answer])
    assert (verdict.mark("passed"), verdict.mark("form")) == (1, 0)
