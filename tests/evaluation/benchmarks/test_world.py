import json
from pathlib import Path
from typing import Any

import pytest

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Item, Verdict
from sft_lab.evaluation.benchmarks.world import WorldCode, WorldGeneral, WorldMath

QUESTION = ({"role": "user", "content": "?"},)
DOUBLE = {
    "prompt": 'def double(n):\n    """Return twice n."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == -6",
    "canonical_solution": "    return 2 * n",
}


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("6 * 7 = 42\n#### 42", Verdict({"accuracy": True}, "42")),
        ("#### 42.", Verdict({"accuracy": True}, "42")),
        ("#### 042.0 apples", Verdict({"accuracy": True}, "42.0")),
        ("#### 42\n\nNext: ...\n#### 7", Verdict({"accuracy": True}, "42")),
        ("#### 7\nor rather\n#### 42", Verdict({"accuracy": False}, "7")),
        ("#### -42", Verdict({"accuracy": False}, "-42")),
        ("#### 42/2", Verdict({"accuracy": False}, "no '#### N'")),
        ("#### 42e3", Verdict({"accuracy": False}, "no '#### N'")),
        ("#### ?\n42", Verdict({"accuracy": False}, "no '#### N'")),
        ("the answer is 42", Verdict({"accuracy": False}, "no '#### N'")),
        ("", Verdict({"accuracy": False}, "no '#### N'")),
    ],
)
def test_math_reads_the_first_final_number(completion: str, verdict: Verdict) -> None:
    item = Item("m", QUESTION, {"answer": "42"})
    found = WorldMath("math.jsonl", 64).grade([item], [completion])
    assert [(v.marks, v.reason.lstrip("0")) for v in found] == [(verdict.marks, verdict.reason)]


def test_math_tolerates_commas_on_both_sides() -> None:
    items = [Item("a", QUESTION, {"answer": "1234"}), Item("b", QUESTION, {"answer": "1,234"})]
    verdicts = WorldMath("math.jsonl", 64).grade(items, ["#### 1,234", "#### 1234"])
    assert [verdict.marks for verdict in verdicts] == [{"accuracy": True}] * 2


def test_code_passes_when_its_tests_do() -> None:
    completions = [
        DOUBLE["canonical_solution"],
        "    return n + 2",
        "    return n n",
        "    return 2 * n\nimport os\nos._exit(0)",
        "return 2 * n",  # unindented: leading blanks are part of the answer
    ]
    code = WorldCode("code.jsonl", 64, sandbox="limited", timeout_s=10)
    verdicts = code.grade([Item("c", QUESTION, DOUBLE)] * 5, completions)
    assert [verdict.marks for verdict in verdicts] == [{"passed": True}, *[{"passed": False}] * 4]
    assert verdicts[1].reason.startswith("AssertionError")
    assert verdicts[2].reason.startswith("SyntaxError")


def test_code_settings_are_part_of_the_protocol(tmp_path: Path) -> None:
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"id": "c", "messages": QUESTION, **DOUBLE}))
    fast, slow = (WorldCode(str(path), 64, "limited", timeout_s=limit) for limit in (1.0, 2.0))
    assert fast.digest() != slow.digest()
    assert fast.digest() == WorldCode(str(path), 64, "isolated_or_limited", timeout_s=1.0).digest()


def test_general_follows_the_rule() -> None:
    item = Item("g", QUESTION, {"rule": {"kind": "exact", "text": "fox"}})
    verdicts = WorldGeneral("general.jsonl", 64).grade([item, item], ["fox", "Fox"])
    assert verdicts == [Verdict({"accuracy": True}, "fox"), Verdict({"accuracy": False}, "Fox")]


@pytest.mark.parametrize(
    ("benchmark", "fields", "message"),
    [
        (WorldMath, {"answer": "many"}, "'answer' must be a number as text, got 'many'"),
        (WorldMath, {"answer": 42}, "'answer' must be a string, got 42"),
        (WorldGeneral, {"rule": "exact"}, "'rule' must be an object, got 'exact'"),
        (WorldGeneral, {"rule": {"kind": "sonnet"}}, "got 'sonnet'"),
        (WorldGeneral, {"rule": {"kind": "exact"}}, "'rule' has no 'text'"),
        (WorldCode, {**DOUBLE, "entry_point": "f()"}, "'entry_point' must name a function"),
    ],
)
def test_wrong_rows_are_found_when_read(
    tmp_path: Path, benchmark: Any, fields: dict[str, Any], message: str
) -> None:
    path = tmp_path / "world.jsonl"
    path.write_text(json.dumps({"id": "x", "messages": QUESTION, **fields}))
    sandbox = {"sandbox": "limited"} if benchmark is WorldCode else {}
    with pytest.raises(RequestError, match=f"line 1: .*{message}"):
        benchmark(str(path), max_new_tokens=64, **sandbox).items()
