"""Provide a few rows of every benchmark in its published file format."""

import gzip
import json
from pathlib import Path
from typing import Any

from hub_cache import HubCache

GSM8K = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(4)]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def f{n}():\n    """Return {n}."""\n',
        "entry_point": f"f{n}",
        "test": f"def check(candidate):\n    assert candidate() == {n}",
        "canonical_solution": f"    return {n}",
    }
    for n in range(2)
]
MBPP = [
    {
        "task_id": task_id,
        "text": "Write a function to add.",
        "code": "def add(a, b):\r\n  return a + b",
        "test_list": ["assert add(1, 2) == 3"],
        "test_setup_code": "",
    }
    for task_id in (2, 11, 12)
]
IFEVAL = [
    {
        "key": 7,
        "prompt": "No comma, in capitals.",
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_capital"],
        "kwargs": [{}, {}],
    }
]
INSTRUCTIONS = [
    {
        "key": key,
        "prompt": "Write.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": key}],
    }
    for key in (1000, 1001)
]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
    {"question_id": 101, "category": "math", "turns": ["c", "d"]},
]


def add_benchmarks(hub_cache: HubCache) -> None:
    """Add them to a cache of the hub in their published form; of IFEval ``INSTRUCTIONS``."""
    some, rest = slice(0, 1), slice(1, None)
    everything = slice(None)
    halves = {"train": some, "test": everything}
    hub_cache.add_rows("openai/gsm8k", GSM8K, subset="main", splits=halves)
    hub_cache.add_rows("openai/openai_humaneval", HUMANEVAL, splits={"test": everything})
    parts = {"prompt": some, "test": rest}
    hub_cache.add_rows("google-research-datasets/mbpp", MBPP, subset="full", splits=parts)
    hub_cache.add_json("google/IFEval", "ifeval_input_data.jsonl", INSTRUCTIONS)


def write_benchmarks(folder: Path) -> Path:
    """Write them under the data sets' own file names, and return the folder."""
    files: dict[str, list[dict[str, Any]]] = {
        "gsm8k/test.jsonl": GSM8K,
        "humaneval/HumanEval.jsonl.gz": HUMANEVAL,
        "ifeval/input_data.jsonl": IFEVAL,
        "mbpp/mbpp.jsonl": MBPP,
        "mt_bench/question.jsonl": QUESTIONS,
    }
    for name, rows in files.items():
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder
