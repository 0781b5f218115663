import pytest

from sft_lab.evaluation.benchmarks.world import has_form, is_right
from sft_lab.world import families, general, math
from sft_lab.world.dice import Dice

NEEDED_FAMILIES = 8


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.__name__)
def test_the_reference_answer_follows_the_rule_and_others_do_not(family: families.Family) -> None:
    dice = Dice("test", 0)
    for _ in range(50):
        task = general.task(family, dice, benchmark=False)
        assert is_right(task.answer, task.rule)
        assert has_form(task.answer, task.rule)
        for wrong in ("", "OK.", task.answer + " and more"):
            assert not has_form(wrong, task.rule), task
        for wrong in ("", "OK.", task.answer[:-1]):
            assert not is_right(wrong, task.rule), task


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.__name__)
def test_every_statement_is_plain_text(family: families.Family) -> None:
    dice = Dice("test", 0)
    for _ in range(20):
        task = family(dice)
        assert task.statements
        assert all("?" not in statement for statement in task.statements)


def test_families_share_the_source_and_the_benchmark() -> None:
    shown = {row["structure"].split("/")[1] for row in general.rows(200, seed=0)}
    assert len(shown) >= NEEDED_FAMILIES
    asked = [item["family"] for item in general.items(200, seed=0)]
    assert set(asked) == shown - {"numbers", "words", "pair"} - set(math.STARTS)
    assert all(asked.count(family) >= 5 for family in set(asked))


def test_memory_is_asked_for_in_a_later_turn() -> None:
    task = general.task(families.memory, Dice("test", 0), benchmark=True)
    roles = [message["role"] for message in task.messages]
    assert roles == ["user", "assistant", "user"]
    [remembered] = task.rule["words"]
    assert remembered in task.turns[0]
    assert remembered not in task.turns[-1]


def test_families_give_known_tasks() -> None:
    dice = Dice("test", 3)
    for _ in range(30):
        casing = families.casing(dice)
        how = "in upper case" if casing.answer.isupper() else "with capitals"
        assert casing.turns[0] == f"Write {casing.answer.lower()} {how}."
        order = families.order(dice)
        given = order.turns[0].removesuffix(".").split(" words ")[1].split()
        assert order.answer == " ".join(given[::-1])
        repeat = families.repeat(dice)
        *words, count = repeat.turns[0].removesuffix(" times.").split()[1:]
        assert repeat.answer.split() == words * {"two": 2, "three": 3, "four": 4}[count]
        position = families.position(dice)
        ordinal, row = position.turns[0].removesuffix("?").split("the ")[1].split(" word of ")
        word = row.split()[{"first": 0, "second": 1, "third": 2, "last": -1}[ordinal]]
        assert position.answer == f"The {ordinal} word is {word}.\n#### {word}"
