import gc
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import write_jsonl

from sft_lab.data.row_files import file_rows
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmarks.gsm8k import (
    GSM8K,
    boxed_number,
    flexible_number,
    strict_number,
)
from sft_lab.evaluation.benchmarks.world import final_number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("#### 18", 18),
        ("5 eggs\n#### 1,450,000", 1_450_000),
        ("#### -3.50 dollars", Fraction(-7, 2)),
        ("#### 18.", 18),  # as the pattern takes points along, and float() reads them
        ("#### 18\nAnother:\n#### 7", 18),
        ("#### $18", None),
        ("#### 250 + 20 = 270", 250),  # as RFT's grader reads it
        ("#### 1,2", 12),
        ("#### +5", None),
        ("#### \N{MINUS SIGN}5", None),
        ("#### -5", -5),
        (r"#### \boxed{5}", None),
        ("####18", None),
        ("####", None),
        ("#### 1.2.3", None),
        ("#### .", None),
        ("#### x\n#### 7", 7),  # the first that fits
        ("The answer is 18.", None),
        ("\0#### 18", None),
        ("", None),
        ("#### " + "9" * 5000, None),  # more digits than Python reads
        ("#### " + "9" * 4000 + ".5", None),
    ],
)
def test_strict_reads_the_first_number_behind_the_mark(
    completion: str, number: Fraction | None
) -> None:
    assert strict_number(completion) == number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("so 3 + 4 = 7.", 7),
        ("#### 18\nNext: 7", 7),
        ("#### 250 + 20 = 270", 270),
        ("#### +5", 5),
        ("#### 1,2", 2),
        (r"She drank \boxed{3} cups in 2 days.", 3),
        (r"\boxed{5 \text{ of } 12}, not 7", 12),
        (r"\boxed{1} and \boxed{2} of 9", 2),
        (r"\boxed{\text{none}} of 9", 9),
        (r"\boxed{12} eggs\n#### 24", 24),  # the box is a step
        (r"12 eggs\n#### \boxed{24} of 30", 24),
        (r"\boxed{3 of 9", 9),  # cut off
        ("It costs $1,234.50!", Fraction(2469, 2)),
        ("€ 5", 5),
        ("-$5", -5),
        ("$-5", -5),
        ("$$-5$$", -5),
        ("x = \N{MINUS SIGN}5", -5),
        ("10-5", 5),
        ("(2)-5", 5),
        ("10 - 5", 5),
        ("3/4 of it", Fraction(3, 4)),
        ("-1/2", Fraction(-1, 2)),
        ("1 1/2 cups", Fraction(3, 2)),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"\boxed{-\dfrac{3}{4}}", Fraction(-3, 4)),
        (r"$1{,}200$", 1200),
        (r"It is 1\,200.", 1200),
        (r"10,\!000", 10_000),
        ("1\N{NARROW NO-BREAK SPACE}234\N{NO-BREAK SPACE}567", 1_234_567),
        (r"3\, 4", 4),
        ("either 1/2,3/4", Fraction(3, 4)),
        ("21,3/4", Fraction(3, 4)),  # a list: 213 would have no comma there
        ("75%", 75),
        ("1e3", 1000),
        ("2.5e-1", Fraction(1, 4)),
        (".5", Fraction(1, 2)),
        ("**42**", 42),
        ("10,20", 20),  # no thousands' commas
        ("1,2345", 2345),
        ("4 / 0", None),
        ("<<2*3=6>>6 per day", 6),
        ("3300/", 3300),
        ("9" * 5000, None),
        ("9" * 400 + ".5", None),  # no number but a digit repeated
        ("9" * 4300 + "e999", None),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("1,234/2", 617),
        ("on 5/6/2024", 2024),
        ("\N{EN DASH}5", -5),
        ("3\N{EN DASH}5", 5),
        ("none", None),
        ("", None),
    ],
)
def test_flexible_reads_the_last_number(completion: str, number: Fraction | None) -> None:
    assert flexible_number(completion) == number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        (r"\boxed{\$1{,}200.50} a week", Fraction(2401, 2)),
        (r"\boxed {-\frac{3}{4}} of 8", Fraction(-3, 4)),
        (r"\boxed{\{7\}} of 8", 7),
        (r"\boxed{\boxed{7} + 1}", 1),  # the outer box is the last to close
        (r"} \boxed{7}} of 8", 7),
        (r"\boxed{6} \boxed{7", 6),
        (r"\boxed{x}", None),
        ("7", None),
    ],
)
def test_boxed_reads_the_number_in_the_last_box(completion: str, number: Fraction | None) -> None:
    assert boxed_number(completion) == number


PIECES = ["1", "1,", "1,111", "1.", "1/", "1 ", "1 1/", "1/1,", "1e", "-", "$ ", "{,}", "1{,}"]
PIECES += [
    r"\boxed{",
    r"\boxed{1}",
    r"\boxed ",
    "}",
    r"\frac{",
    r"\frac{1}{",
    r"1\,",
    "#### ",
    "#### 1,",
    "#",
    ",",
    "x1",
]


@pytest.mark.parametrize("piece", PIECES)
def test_time_grows_linearly_with_a_text(piece: str) -> None:
    def seconds(count: int) -> float:
        text = f"#### {piece * count}x 1/{piece * count}/"
        times = []
        for _ in range(3):
            start = time.process_time()
            strict_number(text)
            flexible_number(text)
            final_number(text)
            times.append(time.process_time() - start)
        return min(times)

    gc.disable()  # its time depends on all other objects of the process
    try:
        small, large = seconds(1_000), seconds(8_000)
    finally:
        gc.enable()
    assert large < max(24 * small, 0.02)  # 8 times is linear, 64 times quadratic


def test_marks_and_items(tmp_path: Path) -> None:
    rows = [{"question": "3 x 6?", "answer": "3 x 6 = <<3*6=18>>18\n#### 18"}]
    write_jsonl(tmp_path / "test.jsonl", rows)
    [item] = GSM8K(str(tmp_path / "test.jsonl"), 256).items()
    assert (item.id, item.messages) == ("GSM8K/0", ({"role": "user", "content": "3 x 6?"},))
    graded = GSM8K(str(tmp_path / "test.jsonl"), 256).grade(
        [item] * 4, ["#### 18", "18", r"\boxed{18} of 20", "none"]
    )
    assert [verdict.marks for verdict in graded] == [
        {"flexible": True, "strict": True, "boxed": False, "form": True},
        {"flexible": True, "strict": False, "boxed": False, "form": False},
        {"flexible": True, "strict": False, "boxed": True, "form": False},
        {"flexible": False, "strict": False, "boxed": False, "form": False},
    ]


def test_a_row_without_a_final_number_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"question": "?", "answer": "18"}])
    with pytest.raises(RequestError, match=r"test\.jsonl, line 1: .* '#### N', got '18'"):
        GSM8K(str(tmp_path / "test.jsonl"), 256).items()


def test_real_completions_are_graded_as_their_labels_say(
    shared_data: Callable[[str], Path],
) -> None:
    labelled = shared_data("../labelled/gsm8k_rft_llama7b_u13b.jsonl.gz")
    rows = [dict(row.values) for row in file_rows("labelled", Path(labelled))]
    gsm8k = GSM8K(str(shared_data("gsm8k/test.jsonl")), 256)
    items = gsm8k.items()
    assert [item.id for item in items] == [row["task_id"] for row in rows]
    marks = [v.marks or {} for v in gsm8k.grade(items, [row["completion"] for row in rows])]
    assert [mark["flexible"] for mark in marks] == [row["is_correct"] for row in rows]
    differing = [
        row["task_id"]
        for row, mark in zip(rows, marks, strict=True)
        if mark["strict"] != row["is_correct"]
    ]
    # It ends in "20.00 more per hour than Sally.\n####": the label's grader falls back to 20.
    assert differing == ["GSM8K/798"]
