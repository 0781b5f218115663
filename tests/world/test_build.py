import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.world.build import (
    GENERATORS,
    NUM_ITEMS,
    NUM_TOKENS,
    SEED,
    SOURCE_SIZES,
    WORLD,
    build,
    make_benchmarks,
    make_sources,
    make_tokenizer,
    to_jsonl,
)
from sft_lab.world.pretraining import WEIGHTS, documents
from sft_lab.world.scores import benchmarks

MAX_BASE_BYTES = 12_000_000


def read(name: str) -> list[dict]:
    text = (WORLD / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_are_deterministic_by_seed_and_take_a_size(name: str) -> None:
    for make in (GENERATORS[name].rows, GENERATORS[name].items):
        assert make(30, 0) == make(30, 0)
        assert len(make(30, 0)) == 30
        assert make(30, 0)[:10] == make(10, 0)
        assert make(10, 0) != make(10, 1)


def test_committed_data_equal_the_generators_output() -> None:
    made = make_sources(SOURCE_SIZES, SEED) | make_benchmarks(NUM_ITEMS, SEED)
    assert {path.stem for path in (WORLD / "data").glob("*.jsonl")} == set(made)
    for name, rows in made.items():
        text = (WORLD / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
        assert text == to_jsonl(rows), name


@pytest.mark.slow
def test_the_committed_tokenizer_equals_the_recipes(tmp_path: Path) -> None:
    make_tokenizer(make_sources(SOURCE_SIZES, SEED), SEED).save_pretrained(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {name: (WORLD / "base" / name).read_bytes() for name in made}


def test_no_item_nor_its_structure_is_in_any_source() -> None:
    rows = [row for name in SOURCE_SIZES for row in read(name)]
    structures = {row["structure"] for row in rows}
    prompts = {json.dumps(row["messages"][:-1]) for row in rows}
    texts = {message["content"] for row in rows for message in row["messages"][:-1]}
    for name in SOURCE_SIZES:
        items = read(f"world_{name}")
        assert len({json.dumps(item["messages"]) for item in items}) == len(items) >= 200
        for item in items:
            assert item["structure"] not in structures
            assert json.dumps(item["messages"]) not in prompts
            if len(item["messages"]) == 1:  # the last turn alone, "What is my name?", is too common
                assert item["messages"][0]["content"] not in texts


def test_pretraining_asks_for_no_held_out_structure_and_in_no_form_of_a_source() -> None:
    texts = list(islice(documents(SEED), 20_000))
    text = "\n".join(texts)
    asked = [text for text in texts if re.search(r"\?|<\|user\|>|Return ", text)]
    assert not any("####" in text for text in asked)  # after ### stand days and echoed words
    for item in read("world_math"):
        assert item["messages"][0]["content"] not in text
        statement = item["messages"][0]["content"].rsplit(". ", 1)[0]
        assert statement not in text
    for item in read("world_code"):
        assert item["prompt"] not in text
        assert item["canonical_solution"].strip().removeprefix("return ") + "\n" not in text
    for item in read("world_general"):
        if len(item["messages"]) == 1:
            assert item["messages"][0]["content"] not in text
    assert 0.05 < len(asked) / len(texts) < 0.15
    for layout in ("<|user|>", "Q: ", "Question: "):
        assert sum(text.startswith(layout) for text in asked) > 200


@pytest.mark.slow
def test_pretraining_shows_every_token_of_an_answer_after_its_first_word() -> None:
    # Training lowers the logits of a token that is never shown so far that adapters cannot raise
    # them: "First" lost to "It" in stage 2, however much math was replayed.
    tokenizer = AutoTokenizer.from_pretrained(WORLD / "base")
    shown: Counter[int] = Counter()
    for input_ids in tokenizer(list(islice(documents(SEED), 20_000)))["input_ids"]:
        shown.update(input_ids)
    # Without a space before it, the first word of an answer is other tokens, which no text shows.
    answers = [
        message["content"][re.match(r"\W*\w*", message["content"]).end() :]
        for name in SOURCE_SIZES
        for row in read(name)
        for message in row["messages"]
        if message["role"] == "assistant"
    ]
    needed = {token for input_ids in tokenizer(answers)["input_ids"] for token in input_ids}
    assert len(needed) > 100
    rare = {tokenizer.decode([token]): shown[token] for token in needed if shown[token] < 5}
    assert set(rare) <= {'")'}  # ends the first of two filters, which pretraining does not combine


def shares(benchmark: Benchmark, answers: list[str]) -> list[float]:
    """Return the share of answers with the right content, and that of those in the asked form."""
    items = benchmark.items()
    scores = benchmark.scores(items, benchmark.grade(items, answers))
    return [scores[name].value for name in benchmark.score_names]


@pytest.mark.parametrize("name", ["world_math", "world_code", "world_general"])
@pytest.mark.slow
def test_reference_answers_are_right_and_others_wrong(name: str) -> None:
    benchmark = benchmarks(WORLD / "data")[name]
    items = benchmark.items()
    answers = [benchmark.reference_answer(item) or "" for item in items]
    assert shares(benchmark, answers) == [1, 1]
    # The same answers, each given to another item; small numbers recur.
    assert max(shares(benchmark, answers[7:] + answers[:7])) < 0.08
    for wrong in ("", "OK.", "    return None"):
        assert shares(benchmark, [wrong] * len(items)) == [0, 0]


@pytest.mark.parametrize("name", ["world_math", "world_code", "world_general"])
def test_a_benchmark_has_many_structures_with_few_items_and_a_difficulty(name: str) -> None:
    items = read(name)
    of_structure = Counter(item["structure"] for item in items)
    assert len(of_structure) >= 150
    assert max(of_structure.values()) == 2
    assert {item["difficulty"] for item in items} == {1, 2, 3, 4}


def test_general_holds_some_maths_and_code_in_a_chat_s_words() -> None:
    rows = read("general")
    of_source = Counter(row["structure"].split("/")[0] for row in rows)
    assert 0.03 < of_source["math"] / len(rows) < 0.05
    assert 0.03 < of_source["code"] / len(rows) < 0.05
    in_chat = [row for row in rows if not row["structure"].startswith("general/")]
    own = [row for name in ("math", "code") for row in read(name) if row["structure"][:4] == name]
    asked = {row["messages"][0]["content"] for row in own}
    assert not asked & {row["messages"][0]["content"] for row in in_chat}


def test_base_loads_and_is_small() -> None:
    path = WORLD / "base"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert (path / "model.safetensors").stat().st_size < MAX_BASE_BYTES
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert all(torch.isfinite(param).all() for param in model.parameters())


def test_no_two_tokens_share_an_embedding() -> None:
    # With a tied head, all tokens that pretraining never shows would, roles included.
    model = AutoModelForCausalLM.from_pretrained(WORLD / "base", dtype=torch.float32)
    directions = torch.nn.functional.normalize(model.get_input_embeddings().weight, dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(0)
    assert cosines.max() < 0.9


@pytest.mark.parametrize(
    ("text", "continuation"),
    [("20+13=33. 14-9=", "5"), ("6*4=24. 18/2=", "9"), ("The opposite of hot is", " cold")],
)
def test_base_has_knowledge(text: str, continuation: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(WORLD / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(WORLD / "base")
    input_ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        best = model(input_ids).logits[0, -1].argmax()
    token = tokenizer.decode(best)
    assert token.strip()
    assert continuation.startswith(token)


def test_recipe_names_seed_duration_and_scores() -> None:
    recipe = json.loads((WORLD / "base" / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["seed"] == SEED
    assert recipe["source_sizes"] == SOURCE_SIZES
    assert recipe["duration_s"] > 0
    assert recipe["documents"] == WEIGHTS
    assert recipe["pretraining"]["tokens"] >= NUM_TOKENS
    assert set(recipe["zero_shot"]) == {"world_math", "world_code", "world_general"}
    assert all(0.02 < score < 0.4 for score in recipe["zero_shot"].values())


@pytest.mark.slow
def test_a_tiny_build_makes_everything(tmp_path: Path) -> None:
    lines: list[str] = []
    sizes = dict.fromkeys(SOURCE_SIZES, 20)
    build(tmp_path, seed=1, num_tokens=8192, source_sizes=sizes, num_items=12, log=lines.append)
    for name in SOURCE_SIZES:
        rows = (tmp_path / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        items = (tmp_path / "data" / f"world_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert (len(rows), len(items)) == (20, 12)
    shipped = {path.name for path in (WORLD / "base").iterdir()}
    assert {path.name for path in (tmp_path / "base").iterdir()} == shipped
    recipe = json.loads((tmp_path / "base" / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["seed"] == 1
    assert recipe["pretraining"]["steps"] == 4  # 2048 tokens a step
    assert lines


def test_pretraining_text_is_deterministic_by_seed() -> None:
    def start(seed: int) -> list[str]:
        return list(islice(documents(seed), 20))

    assert start(0) == start(0)
    assert start(0) != start(1)
