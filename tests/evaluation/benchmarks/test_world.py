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


def marks(free: bool, strict: bool, form: bool) -> dict[str, bool]:
    return {"format_free": free, "accuracy": strict, "form": form}


@pytest.mark.parametrize(
    ("completion", "expected", "read"),
    [
        ("6*7=42.\n#### 42", marks(True, True, True), "42"),
        ("#### 42.", marks(True, True, True), "42"),
        ("#### 042.0 apples", marks(True, True, True), "42.0"),
        ("#### 42\n\nNext: ...\n#### 7", marks(True, True, True), "42"),
        ("#### 7\nor rather\n#### 42", marks(False, False, True), "7"),
        ("#### -42", marks(False, False, True), "-42"),
        ("#### ?\n42", marks(True, False, False), "42"),
        ("So 6*7=42. That makes 42.", marks(True, False, False), "42"),
        ("42, as 6*7=42", marks(True, False, False), "42"),
        ("42 or 7", marks(False, False, False), "7"),
        ("6*7=42. So -42", marks(False, False, False), "-42"),
        ("84/2", marks(False, False, False), "no number"),
        ("42e3", marks(False, False, False), "no number"),
        ("many", marks(False, False, False), "no number"),
        ("", marks(False, False, False), "no number"),
    ],
)
def test_math_reads_the_first_final_number_or_else_the_last_one(
    completion: str, expected: dict[str, bool], read: str
) -> None:
    item = Item("m", QUESTION, {"answer": "42"})
    [verdict] = WorldMath("math.jsonl", 64).grade([item], [completion])
    assert (verdict.marks, verdict.reason.lstrip("0")) == (expected, read)


def test_math_tolerates_commas_on_both_sides() -> None:
    items = [Item("a", QUESTION, {"answer": "1234"}), Item("b", QUESTION, {"answer": "1,234"})]
    verdicts = WorldMath("math.jsonl", 64).grade(items, ["#### 1,234", "#### 1234"])
    assert [verdict.marks for verdict in verdicts] == [marks(True, True, True)] * 2


DEFINITION = "def double(n):\n    return 2 * n"


CODE_ANSWERS = [  # completion, format_free, pass_at_1, form
    ("    return 2 * n", True, True, True),
    ("    return n + 2", False, False, True),
    ("    return 2 * n\n\n#### 4", True, True, True),
    ("  return 2 * n", True, False, False),
    ("return 2 * n", True, False, False),  # leading blanks are part of the answer
    (" return 2 * n\nWhat else?", True, False, False),
    ("2 * n", True, False, False),
    ("n + 2", False, False, False),
    (DEFINITION, True, False, False),
    (DEFINITION.replace("double", "twice"), True, False, False),
    (f"```python\n{DEFINITION.replace('double', 'solve')}\n```", True, False, False),
    (DEFINITION.replace("double", "solve") + '\ndef other(n):\n    """Return', True, False, False),
    (DEFINITION.replace("2 * n", "n + 2"), False, False, False),
    (f"```python\n{DEFINITION}\n```", True, False, False),
    ("```python\nreturn 2 * n\n```", True, False, False),
    ("```\n    return 2 * n\n```", True, False, False),
    ("    return n n", False, False, False),
    ("    return 2 * n\nimport os\nos._exit(0)", True, False, True),
    ("The double.", False, False, False),
    ("", False, False, False),
]


def test_code_is_taken_from_any_wrapping() -> None:
    code = WorldCode("code.jsonl", 64, sandbox="limited", timeout_s=10)
    item = Item("c", QUESTION, DOUBLE)
    verdicts = code.grade([item] * len(CODE_ANSWERS), [answer for answer, *_ in CODE_ANSWERS])
    for (answer, free, strict, form), verdict in zip(CODE_ANSWERS, verdicts, strict=True):
        expected = {"passed": free, "passed_official": strict, "form": form}
        assert verdict.marks == expected, answer
        names = {"format_free": [free], "pass_at_1": [strict]}
        assert code.scored_marks(item, verdict) == names
    assert (code.mark_of("format_free"), code.mark_of("pass_at_1")) == ("passed", "passed_official")


def test_code_settings_are_part_of_the_protocol(tmp_path: Path) -> None:
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"id": "c", "messages": QUESTION, **DOUBLE}))
    fast, slow = (WorldCode(str(path), 64, "limited", timeout_s=limit) for limit in (1.0, 2.0))
    assert fast.digest() != slow.digest()
    assert fast.digest() == WorldCode(str(path), 64, "isolated_or_limited", timeout_s=1.0).digest()


FOX = {"form": "final", "words": ["fox"], "among": ["fox", "hen", "cow"]}
ROW = {"form": "words", "words": ["hen", "fox"], "among": ["fox", "hen", "cow"]}
CASED = {"form": "words", "words": ["HEN", "FOX"], "among": ["fox", "hen"], "case": True}
TWO = {"form": "numbers", "count": 2, "among": ["fox", "hen", "cow"]}
RECORD = {"form": "record", "fields": ["name", "pet"], "words": ["Ben", "fox"]}
RECORD["among"] = ["Ben", "Mia", "fox", "hen"]


@pytest.mark.parametrize(
    ("rule", "completion", "expected"),
    [
        (FOX, "It is the fox.\n#### fox", marks(True, True, True)),
        (FOX, "It is the hen.\n#### fox", marks(True, True, True)),
        (FOX, "It is the fox.\n#### hen", marks(False, False, True)),
        (FOX, "#### Fox", marks(True, True, True)),
        (FOX, "Not the hen, the fox!", marks(True, False, False)),
        (FOX, "fox or hen", marks(False, False, False)),
        (FOX, "firefox", marks(False, False, False)),
        (ROW, "hen fox", marks(True, True, True)),
        (ROW, "Turned round: hen fox", marks(True, False, False)),
        (ROW, "hen, fox", marks(True, False, False)),
        (ROW, "fox hen", marks(False, False, True)),
        (ROW, "hen fox fox", marks(False, False, True)),
        (CASED, "HEN FOX", marks(True, True, True)),
        (CASED, "Hen Fox", marks(False, False, True)),
        (TWO, "1. cow\n2. hen", marks(True, True, True)),
        (TWO, "- cow\n- hen", marks(True, False, False)),
        (TWO, "cow and hen", marks(True, False, False)),
        (TWO, "1. cow\n2. cow", marks(False, False, True)),
        (TWO, "1. cow\n2. hen\n3. fox", marks(False, False, False)),
        (RECORD, "name: Ben\npet: fox", marks(True, True, True)),
        (RECORD, "Ben has a fox", marks(True, False, False)),
        (RECORD, "pet: fox\nname: Ben", marks(False, False, False)),
        (ROW, "", marks(False, False, False)),
    ],
)
def test_general_reads_the_words_of_an_answer(
    rule: dict[str, Any], completion: str, expected: dict[str, bool]
) -> None:
    item = Item("g", QUESTION, {"rule": rule})
    [verdict] = WorldGeneral("general.jsonl", 64).grade([item], [completion])
    assert verdict == Verdict(expected, completion)


@pytest.mark.parametrize(
    ("benchmark", "fields", "message"),
    [
        (WorldMath, {"answer": "many"}, "'answer' must be a number as text, got 'many'"),
        (WorldMath, {"answer": 42}, "'answer' must be a string, got 42"),
        (WorldGeneral, {"rule": "fox"}, "'rule' must be an object, got 'fox'"),
        (WorldGeneral, {"rule": {**FOX, "form": "sonnet"}}, "got 'sonnet'"),
        (WorldGeneral, {"rule": {"form": "final", "among": []}}, "'rule' has no 'words'"),
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
