import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_lab.data.duplicates import near_duplicates

TEN = "one two three four five six seven eight nine ten"  # six shingles


def test_a_reworded_copy_is_left_out_for_the_sample_with_the_smaller_id() -> None:
    texts = {
        "a": f"{TEN} eleven twelve",  # 8 shingles
        "b": f"{TEN} eleven thirteen",  # 8 shingles, 7 of them shared: 7 / 9 = 0.78
        "c": "Twenty words on something else that no other sample has anything to do with.",
    }
    assert near_duplicates(texts, 0.77) == {"b": "a"}
    assert near_duplicates(texts, 7 / 9) == {"b": "a"}
    assert near_duplicates(texts, 0.78) == {}


def test_at_1_only_the_same_words_are_near_duplicates() -> None:
    texts = {"a": f"{TEN}.", "b": TEN.upper(), "c": f"{TEN} eleven"}
    assert near_duplicates(texts, 1.0) == {"b": "a"}
    assert near_duplicates(texts, 6 / 7) == {"b": "a", "c": "a"}


def test_a_sample_is_left_out_only_for_one_that_stays() -> None:
    # b resembles a, and c resembles b but not a: c stays, because b is left out.
    a = [f"w{n}" for n in range(54)]  # 50 shingles each
    b = ["x", "y", *a[:-2]]
    c = ["u", "v", *b[:-2]]
    texts = {"a": " ".join(a), "b": " ".join(b), "c": " ".join(c)}
    assert near_duplicates(texts, 0.9) == {"b": "a"}  # 48 / 52 = 0.92, and 46 / 54 = 0.85
    assert near_duplicates(texts, 0.8) == {"b": "a", "c": "a"}


def test_the_most_similar_of_the_kept_samples_is_named() -> None:
    words = [f"w{n}" for n in range(54)]
    texts = {
        "a": " ".join(["x", "y", *words[:-2]]),
        "b": " ".join([*words[1:], "z"]),
        "c": " ".join(words),
    }
    assert near_duplicates(texts, 0.9) == {"c": "b"}  # 49 / 51 against 48 / 52; a and b: 0.89


def test_short_texts_are_compared_by_their_words() -> None:
    texts = {"a": "Hello there!", "b": "hello, there", "c": "Hello you", "d": "???", "e": "!!!"}
    assert near_duplicates(texts, 0.9) == {"b": "a"}
    assert near_duplicates(texts, 1 / 3) == {"b": "a", "c": "a"}  # d and e have no words


def test_one_sample_or_none_has_no_duplicates() -> None:
    assert near_duplicates({}, 0.8) == {}
    assert near_duplicates({"a": TEN}, 0.8) == {}


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, 80, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"got {threshold}"):
        near_duplicates({}, threshold)


def test_few_pairs_at_the_threshold_are_missed_and_none_below_is_found() -> None:
    texts = {}
    for n in range(400):
        words = [f"{n}w{i}" for i in range(40)]  # 36 shingles each, 32 shared: 32 / 40 = 0.8
        texts[f"{n:03}a"] = " ".join(words)
        texts[f"{n:03}b"] = " ".join([*words[4:], "p", "q", "r", "s"])
    found = near_duplicates(texts, 0.8)
    assert all(other == f"{left[:3]}a" for left, other in found.items())
    assert len(found) >= 396
    assert near_duplicates(texts, 0.81) == {}


def test_order_and_hash_seed_do_not_matter() -> None:
    dice = random.Random(0)
    base = [[f"w{dice.randrange(50)}" for _ in range(30)] for _ in range(10)]
    texts = {}
    for n in range(60):
        words = list(base[n % 10])
        words[dice.randrange(30)] = "other"
        texts[f"{dice.getrandbits(64):x}"] = " ".join(words)
    expected = near_duplicates(texts, 0.6)
    assert expected
    shuffled = list(texts.items())
    dice.shuffle(shuffled)
    assert near_duplicates(dict(shuffled), 0.6) == expected
    script = (
        "import json, sys; from sft_lab.data.duplicates import near_duplicates; "
        "sys.stdout.write(json.dumps(near_duplicates(json.load(sys.stdin), 0.6)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(texts),
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(other.stdout) == expected


def test_real_code_rows_that_are_found_differ_in_a_few_words(
    shared_data: Callable[[str], Path],
) -> None:
    path = shared_data("code_alpaca/new_codealpaca.json.gz")
    rows = json.loads(gzip.decompress(path.read_bytes()))
    texts = {}
    for row in rows:
        content = f"{row['instruction']}\n\n{row['input']}\n\n{row['output']}"
        texts[hashlib.sha256(content.encode()).hexdigest()] = content
    found = near_duplicates(texts, 0.8)
    instructions = [sorted(texts[i].split("\n")[0] for i in pair) for pair in found.items()]
    assert sorted(instructions) == [
        [
            "How can I implement a stack data structure in Python?",
            "How would you implement a simple stack data structure in Python?",
        ],
        [
            "How would you translate the following Python code into JavaScript? "
            "def add(a, b): return a + b",
            "Translate the following Python code into JavaScript: def add(a, b): return a + b",
        ],
        [
            "Write a C++ program that calculates the factorial of a given integer using recursion.",
            "Write a C++ program that calculates the factorial of a given number using recursion.",
        ],
    ]
