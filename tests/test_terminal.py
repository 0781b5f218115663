import json
import logging

import pytest

from sft_lab.terminal import (
    VisibleFormatter,
    fitted_table,
    format_table,
    percent,
    to_json,
    visible,
    wrapped,
)


def test_tables_align_names_left_and_numbers_right() -> None:
    table = format_table(["run", "math", "code"], [["dmt", "8.5", "10.0"], ["longer", "100", ""]])
    assert table.split("\n") == [
        "run     math  code",
        "dmt      8.5  10.0",
        "longer   100",
    ]


def test_columns_that_do_not_fit_follow_below(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (["run", "math", "code"], [["dmt", "8.5", "10.0"], ["new", "1", "2"]])
    monkeypatch.setenv("COLUMNS", "15")
    assert fitted_table(*table) == format_table(*table)
    monkeypatch.setenv("COLUMNS", "14")
    assert fitted_table(*table).split("\n") == [
        *("run  math", "dmt   8.5", "new     1"),
        *("", "run  code", "dmt  10.0", "new     2"),
    ]
    monkeypatch.delenv("COLUMNS")  # a pipe gets whole rows
    assert fitted_table(*table) == format_table(*table)


def test_a_joined_column_stays_with_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (["run", "math", "form", "code", "form"], [["dmt", "8.5", "1", "10", "2"]])
    monkeypatch.setenv("COLUMNS", "16")
    assert fitted_table(*table, joined=[2, 4]).split("\n") == [
        *("run  math  form", "dmt   8.5     1"),
        *("", "run  code  form", "dmt    10     2"),
    ]


def test_text_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    assert wrapped("math: 1,234 rows, 5 %") == "math: 1,234\n  rows, 5 %"
    monkeypatch.delenv("COLUMNS")
    assert wrapped("math: 1,234 rows, 5 %") == "math: 1,234 rows, 5 %"


def test_a_table_may_have_no_rows() -> None:
    assert format_table(["run", "math"], []) == "run  math"


def test_scores_become_percent_with_one_digit() -> None:
    assert [percent(score) for score in (0.0, 0.12345, 1.0)] == ["0.0", "12.3", "100.0"]


HOSTILE = "\x1b[2J\u202eevil\x9b31m\x07\u2066\u2028end"
ESCAPED = "\\x1b[2J\\u202eevil\\x9b31m\\x07\\u2066\\u2028end"


def test_control_characters_are_shown_and_do_nothing() -> None:
    assert visible(HOSTILE) == ESCAPED
    assert visible("a\tb\nü 日本 \N{FAMILY}") == "a\tb\nü 日本 \N{FAMILY}"
    assert format_table(["run"], [[f"x{HOSTILE}\n"]]) == f"run\nx{ESCAPED}\\n"


def test_json_is_readable_and_holds_no_control_characters() -> None:
    text = to_json({"ü": HOSTILE})
    assert json.loads(text) == {"ü": HOSTILE}
    assert "ü" in text
    assert visible(text) == text


def test_warnings_hold_no_control_characters() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 1, "row %s", (HOSTILE,), None)
    assert VisibleFormatter().format(record) == f"row {ESCAPED}"
