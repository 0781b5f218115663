import hashlib
import random
from fractions import Fraction
from typing import Any

import pytest

from sft_lab.data.hash_rank import hash_rank
from sft_lab.errors import RequestError
from sft_lab.training.shares import Share, Size, parse_share, take, weighed


@pytest.mark.parametrize(
    ("value", "kind", "amount"),
    [
        (1, "multiple", Fraction(1)),
        (0, "multiple", Fraction(0)),
        ("0/5", "multiple", Fraction(0)),
        ("1/64", "multiple", Fraction(1, 64)),
        (" 1 / 16 ", "multiple", Fraction(1, 16)),
        (0.1, "multiple", Fraction(1, 10)),
        (1e-3, "multiple", Fraction(1, 1000)),
        ("1e-3", "multiple", Fraction(1, 1000)),
        ({"rows": 500}, "rows", Fraction(500)),
        ({"tokens": 1e6}, "tokens", Fraction(1_000_000)),
    ],
)
def test_shares_are_exact(value: Any, kind: Any, amount: Fraction) -> None:
    assert parse_share(value) == Share(kind, amount)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1/0", r"^a share cannot divide by zero, got 1/0\."),
        ("-1/16", r"^a share must be 0 or more, got -1/16\. 0 takes no rows"),
        (-0.5, r"must be 0 or more, got -0\.5"),
        ("abc", r"^not a share, got 'abc'\. Write a number or a fraction such as 1/16"),
        ("", "not a share, got ''"),
        (None, "not a share, got None"),
        (True, "not a share, got True"),
        (float("nan"), "not a share, got nan"),
        (float("inf"), "not a share, got inf"),
        ("1e999999999", "not a share, got '1e999999999'"),
        ([1], r"not a share, got \[1\]"),
        ({}, r"has one key, rows or tokens, got \{\}"),
        ({"rows": 1, "tokens": 2}, r"has one key, rows or tokens, got \{'rows': 1, 'tokens': 2\}"),
        ({"row": 1}, r"has one key, rows or tokens, got \{'row': 1\}"),
        ({"rows": 1.5}, r"^rows must be an integer, 0 or more, got 1\.5"),
        ({"rows": -1}, r"rows must be an integer, 0 or more, got -1"),
        ({"rows": True}, r"must be an integer, 0 or more, got True"),
        ({"tokens": "9"}, r"^tokens must be an integer, 0 or more, got 9"),
        ({"tokens": float("inf")}, r"must be an integer, 0 or more, got inf"),
    ],
)
def test_a_wrong_share_names_value_and_fix(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_share(value)


@pytest.mark.parametrize(
    ("rows", "expected"), [(110142, 430), (20022, 78), (86060, 336), (255, 0), (256, 1)]
)
def test_a_multiple_takes_the_floor(rows: int, expected: int) -> None:
    taken = take(parse_share("1/256"), range(rows), [1] * rows)
    assert taken == list(range(expected))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, []),
        (1, [2, 0, 1]),
        (2, [2, 0, 1, 2, 0, 1]),
        ("5/3", [2, 0, 1, 2, 0]),
        ({"rows": 2}, [2, 0]),
        ({"rows": 4}, [2, 0, 1, 2]),
        ({"tokens": 0}, []),
        ({"tokens": 30}, [2]),  # row 2 has 30 tokens, row 0 has 10, row 1 has 20
        ({"tokens": 31}, [2, 0]),
        ({"tokens": 61}, [2, 0, 1, 2]),
    ],
)
def test_shares_take_from_the_front_of_the_rank_and_go_round(
    value: Any, expected: list[int]
) -> None:
    assert take(parse_share(value), [2, 0, 1], [10, 20, 30]) == expected


def test_an_empty_source_gives_no_rows() -> None:
    assert take(parse_share({"tokens": 5}), [], []) == []


def digests(count: int) -> list[str]:
    return [hashlib.sha256(f"sample {n}".encode()).hexdigest() for n in range(count)]


def test_rank_is_the_same_on_every_machine() -> None:
    # By sha256sum over "0:<digest>" for the digests of "sample 0" to "sample 7", sorted.
    assert hash_rank(digests(8), seed=0) == [2, 6, 4, 3, 1, 5, 7, 0]
    assert hash_rank(digests(8), seed=1) != hash_rank(digests(8), seed=0)


def test_rank_does_not_depend_on_file_order_or_on_other_rows() -> None:
    samples = digests(50)
    shuffled = random.Random(0).sample(samples, 50)
    ranked = [samples[row] for row in hash_rank(samples, seed=3)]
    assert [shuffled[row] for row in hash_rank(shuffled, seed=3)] == ranked
    few = set(samples[::3])
    fewer = sorted(few)
    expected = [digest for digest in ranked if digest in few]
    assert [fewer[row] for row in hash_rank(fewer, seed=3)] == expected


def test_equal_samples_keep_their_file_order() -> None:
    assert hash_rank([digests(1)[0]] * 4, seed=0) == [0, 1, 2, 3]


def test_smaller_shares_are_subsets_of_larger_ones() -> None:
    ranked = hash_rank(digests(100), seed=0)
    smaller = take(parse_share("1/16"), ranked, [1] * 100)
    larger = take(parse_share("1/4"), ranked, [1] * 100)
    assert (len(smaller), len(larger)) == (6, 25)
    assert larger[:6] == smaller


SIZES = {"math": Size(rows=8000, tokens=800_000), "chat": Size(rows=500, tokens=500_000)}


def weigh(
    shares: dict[str, Any], total: Any = None, temperature: float | None = None
) -> dict[str, tuple[str, int]]:
    counts = weighed(
        "mixture",
        {name: parse_share(value) for name, value in shares.items()},
        SIZES,
        total=None if total is None else parse_share(total),
        temperature=temperature,
    )
    return {name: (share.kind, int(share.amount)) for name, share in counts.items()}


def test_shares_stay_as_they_are_without_total_and_temperature() -> None:
    shares = {"math": parse_share("1/4"), "chat": parse_share({"rows": 5})}
    assert weighed("mixture", shares, SIZES, total=None, temperature=None) == shares


def test_a_total_is_divided_by_weight_to_the_last_row() -> None:
    assert weigh({"math": 1, "chat": 3}, {"rows": 100}) == {
        "math": ("rows", 25),
        "chat": ("rows", 75),
    }
    # 10 by thirds: 3.33 each, the one row left goes to the first name.
    thirds = {"math": 1, "chat": 1, "code": 1}
    sizes = {**SIZES, "code": SIZES["math"]}
    counts = weighed(
        "mixture",
        {name: parse_share(value) for name, value in thirds.items()},
        sizes,
        total=parse_share({"rows": 10}),
        temperature=None,
    )
    assert {name: int(share.amount) for name, share in counts.items()} == {
        "math": 3,
        "chat": 4,
        "code": 3,
    }
    assert weigh({"math": "0.2", "chat": "0.8"}, {"tokens": 1e6}) == {
        "math": ("tokens", 200_000),
        "chat": ("tokens", 800_000),
    }


def test_temperature_lifts_small_sources() -> None:
    whole = {"math": 1, "chat": 1}
    # At 1 in proportion: 8000 and 500 rows. At 2 as the roots, 89.44 to 22.36, that is 4 to 1.
    assert weigh(whole, temperature=1) == {"math": ("rows", 8000), "chat": ("rows", 500)}
    assert weigh(whole, temperature=2) == {"math": ("rows", 6800), "chat": ("rows", 1700)}
    assert weigh(whole, {"rows": 50}, temperature=2) == {"math": ("rows", 40), "chat": ("rows", 10)}
    assert weigh(whole, {"rows": 50}, temperature=1e-9) == {
        "math": ("rows", 50),
        "chat": ("rows", 0),
    }
    # Amounts are shares of the sources: of an eighth of math there are 1000 rows, twice the chat.
    assert weigh({"math": "1/8", "chat": 1}, {"rows": 300}, temperature=1) == {
        "math": ("rows", 200),
        "chat": ("rows", 100),
    }
    # Of a total of tokens the amounts are tokens, 8 to 5.
    assert weigh(whole, {"tokens": 1300}, temperature=1) == {
        "math": ("tokens", 800),
        "chat": ("tokens", 500),
    }


def test_a_count_is_no_weight() -> None:
    with pytest.raises(RequestError, match=r"mixture\.chat is a count of rows, but a stage with"):
        weigh({"math": 1, "chat": {"rows": 5}}, temperature=2)
