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


TULU3 = (
    *("allenai/tulu-3-sft-personas-math-grade", "ai2-adapt-dev/personahub_math_v5_regen_149960"),
    "ai2-adapt-dev/tulu_v3.9_personahub_math_interm_algebra_20k",
    "ai2-adapt-dev/numinamath_tir_math_decontaminated",
    "ai2-adapt-dev/tulu_v3.9_open_math_2_gsm8k_50k",
    *(
        "ai2-adapt-dev/evol_codealpaca_heval_decontaminated",
        "ai2-adapt-dev/personahub_code_v2_34999",
    ),
    "ai2-adapt-dev/personahub_ifdata_manual_seed_v3_29980",
    *("ai2-adapt-dev/tulu_v3.9_wildchat_100k", "ai2-adapt-dev/oasst1_converted"),
    *("ai2-adapt-dev/no_robots_converted", "ai2-adapt-dev/tulu_v3.9_aya_100k"),
    *("ai2-adapt-dev/flan_v2_converted", "ai2-adapt-dev/tulu_v3.9_sciriff_10k"),
    *("ai2-adapt-dev/tulu_v3.9_table_gpt_5k", "ai2-adapt-dev/coconot_converted"),
    "ai2-adapt-dev/tulu_v3.9_wildjailbreak_decontaminated_50k",
    "ai2-adapt-dev/tulu_v3.9_synthetic_finalresp_wildguardmixtrain_decontaminated_50k",
    "ai2-adapt-dev/tulu_hard_coded_repeated_10",
)
"""The names in the column ``source`` of allenai/tulu-3-sft-mixture."""


def add_sources(hub_cache: HubCache) -> None:
    """Add the sources of the shipped configs in their published form, beside the benchmarks."""
    add_benchmarks(hub_cache)
    count = range(300)
    math = [{"question": f"{n}?", "answer": f"#### {n}"} for n in count]
    halves = {"train": slice(None), "test": slice(0, 4)}
    hub_cache.add_rows("openai/gsm8k", math, subset="main", splits=halves)
    code = [{"instruction": f"Print {n}.", "input": "", "output": f"print({n})"} for n in count]
    hub_cache.add_json("sahil2801/CodeAlpaca-20k", "code_alpaca_20k.json", code)
    turns = [("human", "Hi {}"), ("gpt", "Yo {}")]
    general = [
        {"id": str(n), "conversations": [{"from": f, "value": v.format(n)} for f, v in turns]}
        for n in count
    ]
    name = "anon8231489123/ShareGPT_Vicuna_unfiltered"
    hub_cache.add_json(name, "ShareGPT_V3_unfiltered_cleaned_split.json", general)
    mixture = [
        {
            "id": f"{source}_{n}",
            "messages": [
                {"role": "user", "content": f"{source} {n}?"},
                {"role": "assistant", "content": str(n)},
            ],
            "source": source,
        }
        for n in range(20)
        for source in TULU3
    ]
    hub_cache.add_rows("allenai/tulu-3-sft-mixture", mixture)


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
