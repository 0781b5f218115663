import pytest

from sft_lab.evaluation.benchmarks.world import has_form, is_right

DASHES = {"form": "dashes", "count": 2, "among": ["fox", "hen", "cow"]}
NUMBERS = DASHES | {"form": "numbers"}


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
    assert (has_form(completion, DASHES) and is_right(completion, DASHES)) is expected


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
    assert (has_form(completion, NUMBERS) and is_right(completion, NUMBERS)) is expected


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 'table'"):
        has_form("x", DASHES | {"form": "table"})


def test_a_rule_without_its_keys_is_an_error_whatever_the_completion() -> None:
    for key in ("form", "count", "among"):
        with pytest.raises(KeyError, match=key):
            has_form("", {name: value for name, value in DASHES.items() if name != key})
