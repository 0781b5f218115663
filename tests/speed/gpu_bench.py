"""What the entries of ``gpu.py`` share: random Llamas, rows, and configs that train them."""

import gc
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sft_workload import WARM_UP, Case

from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.paths import resolve

CUDA = torch.cuda.is_available()
SHAPES: dict[str, dict[str, Any]] = {  # hidden size, of the MLP, layers, heads, key-value heads
    "check": {"shape": (256, 512, 4, 8, 4), "vocab_size": 4096, "initializer_range": 0.05},
    "0.5B": {"shape": (896, 4864, 24, 14, 2), "vocab_size": 151_936, "tie_word_embeddings": True},
    "7B": {"shape": (4096, 11_008, 32, 32, 32), "vocab_size": 32_000},
    "tiny": {"shape": (64, 128, 2, 4, 2), "vocab_size": 4096, "initializer_range": 0.05},
}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers")
NAMES += ("num_attention_heads", "num_key_value_heads")
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Nats by which losses may differ: far above rounding, far below a row that sees another."""


class Row(NamedTuple):
    """A line of the table."""

    what: str
    ours: str = ""
    against: str = ""
    outcome: str = ""
    failed: bool = False


Entry = tuple[str, Callable[[], Iterable[Row]]]


@dataclass(frozen=True)
class Bench:
    """What all entries use: a folder for bases and rows, and the options."""

    folder: Path
    tiny: bool
    trl_python: str

    def base(self, name: str) -> str:
        """Return the folder of a random base, made when first asked for."""
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = dict(SHAPES["tiny" if self.tiny else name])
        folder = self.folder / name
        if not (folder / "tokenizer_config.json").exists():  # written last
            settings |= zip(NAMES, settings.pop("shape"), strict=True)
            tokenizer = load_tokenizer("world://base")
            config = LlamaConfig(**settings, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
            torch.manual_seed(0)
            dtype = torch.float32 if self.tiny or name == "check" else torch.bfloat16
            with torch.device("cuda" if CUDA else "cpu"):
                LlamaForCausalLM._from_config(config, dtype=dtype).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return str(folder)

    @cached_property
    def rows(self) -> Path:
        """A file of conversations of one to twenty turns of the world's rows."""
        lines = Path(resolve("world://data/general.jsonl")).read_text().splitlines()
        turns = [json.loads(line)["messages"] for line in lines]
        path, chosen = self.folder / "rows.jsonl", random.Random(0)
        with path.open("w") as file:
            for place, first in enumerate(turns):
                more = 0 if self.tiny else place * 7 % 20
                messages = list(chain(first, *chosen.choices(turns, k=more)))
                file.write(json.dumps({"messages": messages}) + "\n")
        return path

    def case(self, base: str, steps: int, *more: str, packing: bool, bf16: bool = True) -> Case:
        """Return a training of LoRA on a base in NF4."""
        overrides = [
            f"model.base={self.base(base)}",
            f"corpus.sources.general.path={self.rows}",
            "corpus.val_rows=0",
            "evaluation.weights=live",  # a merged copy of 7B needs memory of its own
            "data.stages.all.mixture={general: 1, math: 0, code: 0}",
            *([] if self.tiny else ["corpus.max_length=1024"]),
            *more,
        ]
        steps = WARM_UP + (1 if self.tiny else steps)
        precision = "bf16-mixed" if bf16 and CUDA else "32-true"
        return Case(steps, packing, precision, overrides)


def free() -> None:
    """Leave the device's memory to what comes next."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
