import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_lab.evaluation.benchmark import Benchmark, Item
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


def test_pretraining_text_asks_nothing_and_shows_no_item() -> None:
    text = "\n".join(islice(documents(SEED), 20_000))
    assert "?" not in text
    assert not re.search(r"####\s*\d", text)  # in a diary, days follow ####, not answers
    for item in read("world_math"):
        statement = item["messages"][0]["content"].rsplit(". ", 1)[0]
        assert statement not in text
    for item in read("world_code"):
        assert item["canonical_solution"].strip().removeprefix("return ") + "\n" not in text


@pytest.mark.slow
def test_pretraining_shows_every_token_of_an_answer() -> None:
    # Training lowers the logits of a token that is never shown so far that adapters cannot raise
    # them: "First" lost to "It" in stage 2, however much math was replayed.
    tokenizer = AutoTokenizer.from_pretrained(WORLD / "base")
    shown: Counter[int] = Counter()
    for input_ids in tokenizer(list(islice(documents(SEED), 20_000)))["input_ids"]:
        shown.update(input_ids)
    answers = [
        message["content"]
        for name in SOURCE_SIZES
        for row in read(name)
        for message in row["messages"]
        if message["role"] == "assistant"
    ]
    needed = {token for input_ids in tokenizer(answers)["input_ids"] for token in input_ids}
    assert len(needed) > 100
    rare = {tokenizer.decode([token]): shown[token] for token in needed if shown[token] < 5}
    assert not rare


def reference(item: Item) -> str:
    if "answer" in item.row:
        return f"First 1+1=2.\n#### {item.row['answer']}"
    if "rule" in item.row and item.row["rule"]["kind"] == "exact":
        return item.row["rule"]["text"]
    if "rule" in item.row:
        rule = item.row["rule"]
        marks = ("-",) * 4 if rule["layout"] == "dashes" else ("1.", "2.", "3.", "4.")
        pairs = zip(marks[: rule["count"]], rule["of"][: rule["count"]], strict=True)
        return "\n".join(f"{mark} {word}" for mark, word in pairs)
    return item.row["canonical_solution"]


def share_right(benchmark: Benchmark, answers: list[str]) -> float:
    items = benchmark.items()
    return benchmark.scores(items, benchmark.grade(items, answers))[benchmark.score_names[0]].value


@pytest.mark.parametrize("name", ["world_math", "world_code", "world_general"])
@pytest.mark.slow
def test_reference_answers_are_right_and_others_wrong(name: str) -> None:
    benchmark = benchmarks(WORLD / "data")[name]
    items = benchmark.items()
    answers = [reference(item) for item in items]
    assert share_right(benchmark, answers) == 1
    # The same answers, each given to another item; a list of fruits may suit two items.
    assert share_right(benchmark, answers[7:] + answers[:7]) < 0.06
    for wrong in ("", "OK.", "    return None"):
        assert share_right(benchmark, [wrong] * len(items)) == 0


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
    assert max(recipe["zero_shot"].values()) < 0.05  # knowledge, but no skills


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
