import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from sft_lab.data.contamination import ItemIndex
from sft_lab.data.intake import Sample, samples
from sft_lab.data.intake_report import IntakeReport, check_dropped
from sft_lab.data.sources import Source
from sft_lab.errors import RequestError

QUESTION = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. "
    "How many bolts in total does it take?"
)
ITEMS = {"gsm8k": {"GSM8K/1": [QUESTION]}}


def intake(
    path: Path, *, items: dict[str, Any] | None = None, drop: bool = False, **settings: Any
) -> tuple[list[Sample], IntakeReport]:
    report = IntakeReport()
    source = Source(str(path), **settings)
    index = ItemIndex(items or {})
    found = list(samples("math", source, index, drop_contaminated=drop, report=report))
    return found, report


def pairs(path: Path, *prompts: str, **keys: Any) -> Path:
    return write_jsonl(path, [{"prompt": p, "completion": "yes", **keys} for p in prompts])


def prompts(found: list[Sample]) -> list[str]:
    return [sample.conversation.messages[0]["content"] for sample in found]


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "gpt", "value": "x"}] * 2},
        {
            "conversations": [
                {"from": "gpt", "value": "x"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
        {"conversations": "none"},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found, report = intake(path)
    assert [sample.place for sample in found] == ["line 1", "line 3"]
    assert found[1].repairs == ("answers before the first question removed",)
    assert found[0].id == found[1].id
    assert report.rows == 4
    assert report.dropped == {
        "no user turn followed by an assistant turn": 1,
        "'conversations' is not a list of turns": 1,
    }
    assert report.dropped == report.unusable
    assert not report.repaired  # the caller knows whether a row is used
    assert report.duplicates == 1
    assert report.examples["'conversations' is not a list of turns"] == "line 4"
    assert report.lines == [
        "2 of 4 rows left out: 1 no user turn followed by an assistant turn, "
        "1 'conversations' is not a list of turns",
        "1 row repeats another row",
    ]
    assert IntakeReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_rows_are_chosen_by_expression_and_by_pattern(tmp_path: Path) -> None:
    rows = [
        {"prompt": "sum", "completion": "1", "correct": True},
        {"prompt": "sum", "completion": "2", "correct": False},
        {"prompt": "write Python", "completion": "3", "correct": True},
        {"prompt": "poem", "completion": "4", "correct": True},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found, report = intake(path, where="correct == true", exclude=["(?i)python"], include=["m"])
    assert prompts(found) == ["sum", "poem"]
    assert report.dropped.total() == 2
    assert report.dropped["not where correct == true"] == 1
    assert not report.unusable  # left out on request, which is never too many


def test_a_misspelt_key_of_an_expression_is_an_error(tmp_path: Path) -> None:
    path = pairs(tmp_path / "rows.jsonl", "a")
    with pytest.raises(RequestError, match=r"sources\.math: .*line 1: .*corect"):
        intake(path, where="corect == true")


def test_copies_are_counted_and_dropped_on_request(tmp_path: Path) -> None:
    path = pairs(tmp_path / "rows.jsonl", "a", "b", "a", "a")
    found, report = intake(path)
    assert prompts(found) == ["a", "b", "a", "a"]
    assert report.duplicates == 2
    found, report = intake(path, duplicates="drop")
    assert prompts(found) == ["a", "b"]
    assert (report.duplicates, report.dropped) == (2, {"repeats another row": 2})


def test_near_duplicates_are_dropped_on_request_in_any_order(tmp_path: Path) -> None:
    other = "Name three rivers of Europe, and say for each of them into which sea it flows."
    reworded = QUESTION.replace("does it take", "does it need")
    texts = [QUESTION, other, reworded]
    path = pairs(tmp_path / "rows.jsonl", *texts)
    assert len(intake(path)[0]) == 3
    found, report = intake(path, near_duplicates=0.7)
    assert report.dropped == {"near duplicate (0.7 or more alike)": 1}
    assert other in prompts(found)
    again = pairs(tmp_path / "turned.jsonl", *reversed(texts))
    assert {s.id for s in intake(again, near_duplicates=0.7)[0]} == {s.id for s in found}


def test_of_copies_and_near_duplicates_one_stays(tmp_path: Path) -> None:
    reworded = QUESTION.replace("does it take", "does it need")
    path = pairs(tmp_path / "rows.jsonl", QUESTION, reworded, QUESTION, reworded)
    found, report = intake(path, near_duplicates=0.7)
    assert len(found) == 1
    assert report.dropped == {"repeats another row": 2, "near duplicate (0.7 or more alike)": 1}


def test_a_row_that_is_left_out_has_no_near_duplicates(tmp_path: Path) -> None:
    # It has no 13 words of the item in a row, and 0.5 of its word 5-grams.
    like = QUESTION.replace("half that much", "some more of the")
    path = pairs(tmp_path / "rows.jsonl", QUESTION, like)
    found, report = intake(path, items=ITEMS, drop=True, near_duplicates=0.3)
    assert prompts(found) == [like]
    assert report.dropped == {"contains an item of gsm8k": 1}


def test_a_planted_test_question_is_found_and_dropped_on_request(tmp_path: Path) -> None:
    hidden = f"Please help me with my homework! {QUESTION.lower()} Thanks."
    path = pairs(tmp_path / "rows.jsonl", "What is a robe made of, and who wears it?", hidden)
    found, report = intake(path, items=ITEMS)
    assert len(found) == 2
    assert report.contaminated == {"gsm8k": 1}
    words = "a robe takes 2 bolts of blue fiber and half that much white"
    assert report.contaminated_rows == [f"line 2: gsm8k GSM8K/1 (13-gram): {words}"]
    found, report = intake(path, items=ITEMS, drop=True)
    assert len(found) == 1
    assert report.dropped == {"contains an item of gsm8k": 1}


def test_too_many_unusable_rows_are_refused_with_an_example(tmp_path: Path) -> None:
    path = pairs(tmp_path / "rows.jsonl", "a", "b", "c", " ")
    _, report = intake(path)
    check_dropped("math", Source(str(path), max_dropped=0.25), report)
    with pytest.raises(RequestError, match=r"1 of 4 rows .* line 4: empty message.* from 0\.24"):
        check_dropped("math", Source(str(path), max_dropped=0.24), report)


@pytest.mark.parametrize(
    ("name", "total", "dropped"),
    [
        ("gsm8k/train.jsonl.gz", 7473, {}),
        ("gsm8k_rft/screl_train_use.jsonl.gz", 7473, {}),
        ("gsm8k_rft/rft_phi35mini_681q.jsonl.gz", 2802, {}),
        ("code_alpaca/code_alpaca_2k.json", 2017, {"empty message": 2}),
        ("code_alpaca/new_codealpaca.json.gz", 4535, {}),
        ("sharegpt/dummy_conversation.json", 500, {}),
    ],
)
def test_real_files_are_read_whole(
    shared_data: Callable[[str], Path], name: str, total: int, dropped: dict[str, int]
) -> None:
    found, report = intake(shared_data(name))
    assert (report.rows, report.dropped) == (total, dropped)
    assert len(found) == total - sum(dropped.values())


def test_only_correct_paths_of_rejection_samples_are_used(
    shared_data: Callable[[str], Path],
) -> None:
    path = shared_data("gsm8k_rft/rft_phi35mini_681q.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        right = sum(json.loads(line)["correct"] is True for line in lines)
    found, report = intake(path, where="correct == true")
    assert len(found) == right == 2527
    assert report.dropped == {"not where correct == true": 2802 - 2527}
