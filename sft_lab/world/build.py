"""Build the world from scratch: sources, benchmarks, tokenizer and pretrained base."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from sft_lab.world import code, general, math
from sft_lab.world.overlap import overlapping
from sft_lab.world.pretrain import new_model, pretrain
from sft_lab.world.pretraining import WEIGHTS, documents
from sft_lab.world.scores import benchmarks, score
from sft_lab.world.tokenizer import train_tokenizer

WORLD = Path(__file__).parent
SEED = 0
NUM_TOKENS = 3_900_000
SOURCE_SIZES = {"math": 700, "code": 500, "general": 900}
NUM_ITEMS = 200
NUM_TOKENIZER_DOCUMENTS = 20_000
GENERATORS = {"math": math, "code": code, "general": general}

Rows = list[dict[str, Any]]


def make_sources(sizes: Mapping[str, int], seed: int) -> dict[str, Rows]:
    """Return the training rows by source."""
    return {
        name: overlapping(name, GENERATORS[name].rows(size, seed), seed)
        for name, size in sizes.items()
    }


def make_benchmarks(size: int, seed: int) -> dict[str, Rows]:
    """Return the items by benchmark, ``size`` of each."""
    return {f"world_{name}": made.items(size, seed) for name, made in GENERATORS.items()}


def make_tokenizer(sources: Mapping[str, Rows], seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the pretraining text and the sources.

    Without the sources "What" would be split into pieces of other words, "hat" among them.
    """
    contents = (
        message["content"]
        for row in chain.from_iterable(sources.values())
        for message in row["messages"]
    )
    return train_tokenizer(chain(islice(documents(seed), NUM_TOKENIZER_DOCUMENTS), contents))


def to_jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as one JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def build(
    out: Path,
    seed: int = SEED,
    num_tokens: int = NUM_TOKENS,
    source_sizes: Mapping[str, int] = SOURCE_SIZES,
    num_items: int = NUM_ITEMS,
    log: Callable[[str], None] = print,
) -> None:
    """Write ``data/`` and ``base/`` under a folder.

    Args:
        out: Folder to write to; created if missing, and files of the same names are overwritten.
        seed: Seed of the generators, the pretraining text and the weights.
        num_tokens: Pretraining budget in tokens.
        source_sizes: Rows by source.
        num_items: Items of each benchmark.
        log: Called with each line of progress.
    """
    started = time.monotonic()
    data, base = out / "data", out / "base"
    for folder in (data, base):
        folder.mkdir(parents=True, exist_ok=True)
    sources = make_sources(source_sizes, seed)
    for name, rows in (sources | make_benchmarks(num_items, seed)).items():
        (data / f"{name}.jsonl").write_text(to_jsonl(rows), encoding="utf-8")
        log(f"{name}: {len(rows)} rows")

    tokenizer = make_tokenizer(sources, seed)
    log(f"tokenizer: {len(tokenizer)} tokens")

    model = new_model(tokenizer, seed)
    recipe = pretrain(model, documents(seed), tokenizer, num_tokens, log)
    model.half().save_pretrained(base)
    tokenizer.save_pretrained(base)
    # Scores are those of the shipped weights: rounded to float16, computed in float32.
    scores = score(model.float(), tokenizer, benchmarks(data))
    log(", ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items()))
    recipe_file = {
        "command": f"python -m sft_lab world build --seed {seed} --tokens {num_tokens}",
        "seed": seed,
        "pretraining": recipe,
        "documents": WEIGHTS,
        "source_sizes": dict(source_sizes),
        "zero_shot": scores,
        "zero_shot_protocol": (
            f"greedy, chat template, {num_items} items a benchmark, format_free, in [0, 1]"
        ),
        "duration_s": round(time.monotonic() - started, 1),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")
        },
    }
    (base / "recipe.json").write_text(json.dumps(recipe_file, indent=2) + "\n", encoding="utf-8")
