import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_lab.data.contamination import ItemIndex, Match, normalized_words

EGGS = (
    "Mara's hens lay 18 eggs per day. She eats four for breakfast, bakes a cake with five, and "
    "sells the rest for $3 each. How much does she make every day?"
)
EGGS_ANSWER = "Mara sells 18 - 4 - 5 = 9 eggs a day.\nShe makes 9 * 3 = $27 every day.\n#### 27"
SUM_TO = '''def sum_to(numbers: List[int], limit: int) -> int:
    """ Return the sum of all numbers in the list that are smaller than the given limit.
    >>> sum_to([1, 5, 9], 6)
    6
    """
'''
INDEX = ItemIndex({"math": {"eggs": [EGGS, EGGS_ANSWER]}, "code": {"sum_to": [SUM_TO]}})


def jsonl(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def with_preamble(items: int, total: int) -> ItemIndex:
    """Return an index of items, some of which are only a preamble."""
    preamble = "Read the following passage closely and then answer the question in one short word."
    shared = {f"a{n}": [f"{preamble} Passage {n}."] for n in range(items)}
    return ItemIndex({"b": shared | {f"z{n}": ["No preamble."] for n in range(total - items)}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3.5, isn't it?", "it s 3 5 isn t it"),
        ("  A\tb\n\nC  ", "a b c"),
        ("if(x%2==0):return is_even", "if x 2 0 return is even"),
        ("if ( x % 2 == 0 ) : return is_even", "if x 2 0 return is even"),
        ("**bold** _it_ `code`", "bold it code"),
        ("ﬁnd \uff21\uff11 № É\u00a0é e\u0301", "find a1 no é é é"),  # NFKC
        ("Janet\u2019s “eggs”—fresh…", "janet s eggs fresh"),
        ("他有3个苹果。", "他 有 3 个 苹 果"),
        ("データ・ベース、ｶﾀ", "デ ー タ ベ ー ス カ タ"),
        ("안녕 하세요", "안녕 하세요"),
        ("!? ... ()", ""),
    ],
)
def test_words_are_lower_case_runs_of_letters_and_digits(text: str, words: str) -> None:
    assert normalized_words(text) == words.split()


@given(st.text(st.characters(max_codepoint=127)))
def test_the_shortcut_for_ascii_gives_the_same_words(text: str) -> None:
    assert normalized_words(text + " é") == [*normalized_words(text), "é"]


def test_a_whole_text_is_found_in_any_layout() -> None:
    row = ["Hello there", "MARA\u2019S hens lay 18 eggs per day; she eats four" + EGGS[46:].upper()]
    words = " ".join(normalized_words(EGGS))
    assert INDEX.find(row) == Match("math", "eggs", "exact", words)


def test_a_question_hidden_in_a_longer_row_is_found_by_13_words() -> None:
    row = ["Warm up first: what is 2 + 2?\n\n" + EGGS + "\n\nThink step by step.", "#### 27"]
    found = INDEX.find(row)
    assert found == Match(
        "math", "eggs", "13-gram", "mara s hens lay 18 eggs per day she eats four for breakfast"
    )


def test_a_code_prompt_hidden_in_an_alpaca_row_is_found() -> None:
    spaced = SUM_TO.replace("    ", "\t").replace(": ", ":").replace(", ", ",")
    found = INDEX.find([f"Complete the function.\n\n{spaced}", "    return 0"])
    assert found is not None
    assert (found.benchmark, found.item_id, found.kind) == ("code", "sum_to", "13-gram")


def test_twelve_words_in_common_are_no_match() -> None:
    words = normalized_words(EGGS)
    assert INDEX.find(["today " + " ".join(words[:12]) + " only"]) is None
    assert INDEX.find(["today " + " ".join(words[:13]) + " only"]) is not None
    assert INDEX.find([" ".join([*words[:6], "and", *words[6:12], "so", *words[12:24]])]) is None


def test_no_phrase_spans_two_messages() -> None:
    words = normalized_words(EGGS)
    assert INDEX.find([" ".join(words[:12]), " ".join(words[12:24])]) is None


def test_clean_rows_are_not_found() -> None:
    other_numbers = EGGS.replace("18", "16").replace("four", "three").replace("five", "two")
    reworded = "Each day Mara collects 18 eggs from her hens, uses nine of them and sells the rest."
    assert INDEX.find([other_numbers.replace("$3", "$2").replace("cake", "pie")]) is None
    assert INDEX.find([reworded, "#### 27"]) is None
    assert INDEX.find(["Return the sum of the list.", "def total(xs):\n    return sum(xs)"]) is None
    assert INDEX.find([]) is None
    assert INDEX.find(["", "..."]) is None


def test_a_short_text_is_found_only_as_a_whole_message() -> None:
    index = ItemIndex({"b": {"1": ["Name the largest planet we know."], "2": ["Say hi to me"]}})
    assert index.find(["Name the largest planet we know!"]) is not None
    assert index.find(["Please name the largest planet we know."]) is None
    assert index.find(["Say hi to me"]) is None  # four words are no evidence


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3, 4, 5]",
        "x = [a, b, c, d, e]",
        ", ".join(map(str, range(30))),
        "0, " * 30,
        "a b c d e f g h i j k l m n o p",
        "for i in range(n): for j in range(n - i): if a[j] > a[j + 1]: a[j], a[j + 1]",
    ],
)
def test_numbers_single_letters_and_loops_are_no_evidence(text: str) -> None:
    assert ItemIndex({"b": {"1": [text]}}).find([f"Look: {text}!"]) is None


def test_a_whole_text_wins_over_a_phrase() -> None:
    index = ItemIndex({"a": {"1": [EGGS]}, "b": {"2": [EGGS_ANSWER]}})
    found = index.find([EGGS + " Quickly!", EGGS_ANSWER])
    assert found is not None
    assert (found.benchmark, found.kind) == ("b", "exact")


def test_of_items_that_share_a_text_the_first_is_named() -> None:
    items = {"2": [EGGS], "1": [EGGS]}
    for benchmarks in ({"b": items, "a": items}, {"a": items, "b": items}):
        found = ItemIndex(benchmarks).find([EGGS])
        assert found is not None
        assert (found.benchmark, found.item_id) == ("a", "1")


@pytest.mark.parametrize(
    ("items", "total", "evidence"),
    [
        (10, 40, True),
        (11, 40, False),  # more than 10
        (5, 10, True),
        (6, 10, False),  # more than half
        (2, 2, True),
        (3, 3, False),
        (1, 1, True),
    ],
)
def test_a_preamble_of_many_items_is_no_evidence(items: int, total: int, evidence: bool) -> None:
    row = "Read the following passage closely and then answer the question in one short word. Cats."
    assert (with_preamble(items, total).find([row]) is not None) is evidence


def test_an_item_after_a_preamble_is_found_by_its_own_words() -> None:
    preamble = "Solve the following problem step by step and give the result after four hashes: "
    items = {str(n): [f"{preamble}How many legs have {n} cats?"] for n in range(30)}
    index = ItemIndex({"b": {**items, "eggs": [preamble + EGGS]}})
    found = index.find([preamble + EGGS + " Thanks."])
    assert found is not None
    assert found.item_id == "eggs"
    assert index.find([preamble + "What is seven times the number of days in May?"]) is None


def test_chinese_items_are_found_without_spaces() -> None:
    item = "小明有十八个鸡蛋,早餐吃了四个,其余的以每个三元的价格卖掉。"
    index = ItemIndex({"b": {"1": [item]}})
    assert index.find(["请回答:" + item + "他赚了多少钱?"]) is not None
    assert index.find(["小明有十八个苹果,早餐吃了一个,其余的送给了朋友。"]) is None


def test_the_digest_does_not_depend_on_the_order_of_the_mappings() -> None:
    one = ItemIndex({"a": {"1": ["x", "y"], "2": []}, "b": {}})
    assert one.digest == ItemIndex({"b": {}, "a": {"2": [], "1": ("x", "y")}}).digest
    assert one.digest != ItemIndex({"a": {"1": ["y", "x"], "2": []}, "b": {}}).digest
    expected = hashlib.sha256(b'{"b": {"1": ["x"]}}').hexdigest()
    assert ItemIndex({"b": {"1": ["x"]}}).digest == expected


def test_every_gsm8k_test_question_is_found_inside_a_row(
    shared_data: Callable[[str], Path],
) -> None:
    items = jsonl(shared_data("gsm8k/test.jsonl"))
    index = ItemIndex(
        {"gsm8k": {str(n): [item["question"], item["answer"]] for n, item in enumerate(items)}}
    )
    for number, item in enumerate(items):
        hidden = f"Here is a riddle for you. {item['question']} Answer briefly."
        found = index.find(["Hello!", "Hello, how can I help?", hidden, "I do not know."])
        assert found is not None, number
        assert found.kind == "13-gram"
    # Read one by one: 20, 1314 and 5162 are the test's problems with other numbers; the others
    # share a stock phrase, such as "first movie is 1 hour and 30 minutes long".
    train = jsonl(shared_data("gsm8k/train.jsonl.gz"))
    rows = [n for n, row in enumerate(train) if index.find([row["question"], row["answer"]])]
    assert rows == [20, 406, 699, 1314, 2049, 5003, 5162, 5456, 6841]


def test_every_humaneval_prompt_is_found_inside_an_alpaca_row(
    shared_data: Callable[[str], Path],
) -> None:
    items = jsonl(shared_data("humaneval/HumanEval.jsonl.gz"))
    index = ItemIndex(
        {
            "humaneval": {
                item["task_id"]: [item["prompt"], item["prompt"] + item["canonical_solution"]]
                for item in items
            }
        }
    )
    for item in items:
        found = index.find([f"Complete this function.\n\n{item['prompt']}", "    pass"])
        assert found is not None, item["task_id"]
    # Read one by one: none is leaked. 251, 1151 and 1965 test for a prime, 422 lists primes, and
    # 1938 holds the table of Roman numerals.
    rows = json.loads(shared_data("code_alpaca/code_alpaca_2k.json").read_text(encoding="utf-8"))
    found_rows = [
        n
        for n, row in enumerate(rows)
        if index.find([row["instruction"] + "\n\n" + row["input"], row["output"]])
    ]
    assert found_rows == [251, 422, 1151, 1938, 1965]
