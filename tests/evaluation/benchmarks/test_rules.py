import pytest

from sft_lab.evaluation.benchmarks.world import follows

DASHES = {"kind": "list", "layout": "dashes", "count": 2, "of": ["fox", "hen", "cow"]}
NUMBERS = DASHES | {"layout": "numbers"}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("FOX HEN", True), (" FOX HEN\n", True), ("Fox Hen", False), ("FOX HEN.", False), ("", False)],
)
def test_exact_text_is_compared_letter_by_letter(completion: str, expected: bool) -> None:
    assert follows(completion, {"kind": "exact", "text": "FOX HEN"}) is expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("- hen\n- cow", True),
        ("- cow\n- hen\n", True),
        ("- hen\n- hen", False),
        ("- hen", False),
        ("- hen\n- cow\n- fox", False),
        ("- hen\n- iron", False),
        ("- hen\ncow", False),
        ("- hen\n\n- cow", False),
        ("- hen, cow", False),
        ("1. hen\n2. cow", False),
        ("", False),
    ],
)
def test_list_with_dashes(completion: str, expected: bool) -> None:
    assert follows(completion, DASHES) is expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("1. hen\n2. cow", True),
        ("2. hen\n1. cow", False),
        ("1. hen\n1. cow", False),
        ("1.hen\n2.cow", False),
        ("- hen\n- cow", False),
    ],
)
def test_list_with_numbers(completion: str, expected: bool) -> None:
    assert follows(completion, NUMBERS) is expected


def test_unknown_kind_and_layout_are_errors() -> None:
    with pytest.raises(ValueError, match="got 'regex'"):
        follows("x", {"kind": "regex"})
    with pytest.raises(ValueError, match="got 'table'"):
        follows("x", DASHES | {"layout": "table"})


def test_a_rule_without_its_keys_is_an_error_whatever_the_completion() -> None:
    for key in ("layout", "count", "of"):
        with pytest.raises(KeyError, match=key):
            follows("", {name: value for name, value in DASHES.items() if name != key})
