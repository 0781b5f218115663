import pytest

from sft_lab.evaluation.rules import follows

COMMAS = {"kind": "list", "layout": "commas", "count": 2, "of": ["fox", "hen", "cow"]}
BULLETS = COMMAS | {"layout": "bullets"}
JSON = {"kind": "json", "value": {"name": "Ben", "age": 7}}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("FOX HEN", True), (" FOX HEN\n", True), ("Fox Hen", False), ("FOX HEN.", False), ("", False)],
)
def test_exact_text_is_compared_letter_by_letter(completion: str, expected: bool) -> None:
    assert follows(completion, {"kind": "exact", "text": "FOX HEN"}) is expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("hen, cow", True),
        ("hen, hen", False),
        ("hen", False),
        ("hen, cow, fox", False),
        ("hen, iron", False),
        ("hen,cow", False),
        ("hen, cow.", False),
        ("- hen\n- cow", False),
    ],
)
def test_list_in_one_line(completion: str, expected: bool) -> None:
    assert follows(completion, COMMAS) is expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("- hen\n- cow", True),
        ("- hen\ncow", False),
        ("- hen, cow", False),
        ("- hen\n\n- cow", False),
        ("hen, cow", False),
        ("", False),
    ],
)
def test_list_as_bullets(completion: str, expected: bool) -> None:
    assert follows(completion, BULLETS) is expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"name": "Ben", "age": 7}', True),
        ('{"age":7,"name":"Ben"}', True),
        ('{"name": "Ben", "age": "7"}', False),
        ('{"name": "Ben", "age": 7.0}', False),
        ('{"name": "Ben"}', False),
        ("{'name': 'Ben', 'age': 7}", False),
        ('{"name": "Ben", "age": 7} done', False),
        ("[" * 100_000, False),
    ],
)
def test_json_is_compared_by_value(completion: str, expected: bool) -> None:
    assert follows(completion, JSON) is expected


def test_true_is_not_the_number_one() -> None:
    assert not follows('{"age": true}', {"kind": "json", "value": {"age": 1}})


def test_unknown_kind_and_layout_are_errors() -> None:
    with pytest.raises(ValueError, match="got 'regex'"):
        follows("x", {"kind": "regex"})
    with pytest.raises(ValueError, match="got 'table'"):
        follows("x", COMMAS | {"layout": "table"})
