import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_lab.data.row_filters import RowFilter

ROW = {
    "instruction": "Sort a list in Python",
    "correct": True,
    "rating": 4,
    "note": None,
    "tags": ["code"],
    "meta": {"items": [1, 2], "score": 0.5},
    "train-index": 7,
}


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("correct == true and rating >= 4", True),
        ("correct == true and rating > 4", False),
        ("correct", True),
        ("not correct or 'math' in tags", False),
        ('"python" in instruction', False),
        ('"python" in instruction|lower', True),
        ("instruction|length > 20", True),
        ("instruction.startswith('Sort')", True),
        ("row['train-index'] % 2 == 1", True),
        ("rating * 2 == 8", True),
        ("note is none", True),
        ("source is defined and source == 'web'", False),
        ("meta.score >= 0.5", True),
        ("meta.items == [1, 2]", True),  # Jinja2 alone compares the method dict.items
        ("correct\n  and rating in [4, 5]", True),
    ],
)
def test_where_keeps_rows_for_which_it_is_true(where: str, kept: bool) -> None:
    assert RowFilter(where).keeps_row(ROW) is kept


def test_a_filter_without_settings_keeps_everything() -> None:
    assert RowFilter().keeps_row({})
    assert RowFilter().reason(["anything"]) is None


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ({"result": "ok"}, "result == 'ok'"),
        ({"range": 3, "dict": 4}, "range + 1 == dict"),
        ({"row": 3}, "row == 3"),
    ],
)
def test_keys_come_before_names_that_jinja2_or_we_use(row: dict[str, Any], where: str) -> None:
    assert RowFilter(where).keeps_row(row)


@pytest.mark.parametrize(
    ("where", "missing"),
    [
        ("corect", "'corect' is undefined"),
        ("corect == true", "'corect' is undefined"),
        ("corect != true", "'corect' is undefined"),
        ("not corect", "'corect' is undefined"),
        ("correct == treu", "'treu' is undefined"),
        ("'x' in instrution|lower", "'instrution' is undefined"),
        ("row['train_index'] == 7", "'dict object' has no attribute 'train_index'"),
        ("meta.scor > 0", "'dict object' has no attribute 'scor'"),
        ("len(tags) > 0", "'len' is undefined"),
        ("range == 3", "'range' is undefined"),
    ],
)
def test_a_missing_key_is_an_error_that_lists_the_keys(where: str, missing: str) -> None:
    with pytest.raises(ValueError, match=re.escape(missing)) as caught:
        RowFilter(where).keeps_row(ROW)
    assert "keys instruction, correct, rating, note, tags, meta, train-index" in str(caught.value)
    assert repr(where) in str(caught.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("instruction", "must be true or false, got 'Sort a list in Python'"),
        ("rating", "must be true or false, got 4"),
        ("note", "must be true or false, got None"),
        ("correct and rating", "must be true or false, got 4"),
        ("note > 3", "'>' not supported between instances of 'NoneType' and 'int'"),
        ("rating / 0 > 1", "division by zero"),
    ],
)
def test_a_value_that_is_not_boolean_is_an_error(where: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RowFilter(where).keeps_row(ROW)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "unexpected 'end of template'"),
        ("correct = true", "chunk after expression, at position 8: '= true'"),
        ("correct == == 1", "unexpected '==', at position 8: '== == 1'"),
        ("correct and", "unexpected 'end of template', at position 8: 'and'"),
        ("correct && rating", "unexpected char '&' at 8"),
        ("tags|nosuch == 1", "No filter named 'nosuch', at position 4: '|nosuch == 1'"),
        ("tags|random == 'code'", "No filter named 'random'"),
        ("(correct", "expected ')'"),
        ("correct }}{% for x in y %}", "chunk after expression, at position 8"),
    ],
)
def test_a_bad_expression_is_refused_with_its_place(where: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        RowFilter(where)
    assert f"where {where!r} is not an expression" in str(caught.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("instruction.__class__.__mro__ == 1", "unsafe"),
        ("instruction|attr('__class__') == 1", "unsafe"),
        ("'{0.__class__}'.format(rating) == 'x'", "unsafe"),
        ("tags.append(1) == none", "unsafe"),
        ("row.clear() == none", "unsafe"),
        ("9 ** 9 ** 9 ** 9 > 1", "** is not supported"),
        ("instruction * 99999999999 == ''", "* is not supported"),
        ("[1] * 99999999999 == []", "* is not supported"),
    ],
)
def test_expressions_cannot_leave_the_row_or_change_it(where: str, message: str) -> None:
    row = {**ROW, "tags": ["code"]}
    with pytest.raises(ValueError, match=re.escape(message)):
        RowFilter(where).keeps_row(row)
    assert row == ROW


def test_patterns_are_searched_in_every_message() -> None:
    texts = ["Write Python.", "As an AI language model, I cannot."]
    assert RowFilter(exclude=["[Aa]s an AI"]).reason(texts) == "matches exclude '[Aa]s an AI'"
    assert (
        RowFilter(exclude=["Sorry", "Python\\.$"]).reason(texts) == "matches exclude 'Python\\.$'"
    )
    assert RowFilter(exclude=["as an ai"]).reason(texts) is None
    assert RowFilter(exclude=["(?i)as an ai"]).reason(texts) is not None
    assert RowFilter(exclude=["Python.*language"]).reason(texts) is None  # over two messages


def test_one_include_is_enough_and_exclude_wins() -> None:
    texts = ["Write Python.", "Here it is."]
    assert RowFilter(include=["Rust", "Python"]).reason(texts) is None
    assert RowFilter(include=["Rust", "Go"]).reason(texts) == "matches no include"
    both = RowFilter(include=["Python"], exclude=["it is"])
    assert both.reason(texts) == "matches exclude 'it is'"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": ["fine", "("]}, "include '(' is not a regular expression: missing ), unt"),
        ({"exclude": ["a[z-a]"]}, "bad character range z-a at position 2"),
        ({"exclude": ["a{99999999999}"]}, "the repetition number is too large"),
        ({"exclude": [""]}, "exclude has the pattern ''"),
        ({"include": "python"}, "include must be a list of regular expressions, got 'python'"),
    ],
)
def test_a_bad_pattern_is_refused_with_its_place(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RowFilter(**settings)


def test_rft_rows_with_the_right_answer_are_kept(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("gsm8k_rft/rft_phi35mini_681q.jsonl.gz")
    rows = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
    row_filter = RowFilter("correct == true")
    assert sum(row_filter.keeps_row(row) for row in rows) == 2527  # of 2,802
