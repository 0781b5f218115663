import pytest

from sft_lab.evaluation.benchmarks.ifeval.words import count_capital_words, count_words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("one, two", 2),
        ("a-b c_d", 3),
        ("3.14 e\N{COMBINING ACUTE ACCENT}t", 4),  # 3 14 e t: an accent of its own parts letters
        ("*** — …", 0),
    ],
)
def test_words_are_runs_of_letters_and_digits(text: str, count: int) -> None:
    assert count_words(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A B c D1 2 Ef", 3),
        ("NASA's I'M 'TIS CANNOT", 7),  # NASA, I, 'M, 'T, IS, CAN, NOT
        ("NASA\u2019s I\u2019M", 3),  # a curly apostrophe separates: NASA, I, M
        ("YES,NO;SO A:B 3:PM 1:2A", 7),  # a digit after a colon keeps it: 1:2A is one
        ("A--B C-D E/F G.H I...J", 7),
        ("(A)B [C]D <E>F {G}H *I*J", 10),
        ('"A"B `C`D «E»F', 6),
        ("IT'S\nSO", 3),  # the line break counts as a space
        ("THEY'LL DON'T O'X", 6),  # THEY 'LL, DO N'T, O' X
        ("DOGS' A'", 2),
        ("É ß ΔΣ 日本", 2),
        ("IT'S. IT'S.", 4),  # the full stop that ends each sentence is split off first
    ],
)
def test_capital_words(text: str, count: int) -> None:
    assert count_capital_words(text) == count
