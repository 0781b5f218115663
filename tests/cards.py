"""Write the table of cards in docs/cost.md: the largest micro-batch of each shipped base.

    python tests/cards.py

Every base is planned by its own config and the dimensions that its authors published, over rows as
long as corpus.max_length, in a cache of the hub made for it; no weights are needed.
"""

import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "cost.md"
CONFIGS = Path(__file__).parents[1] / "configs"
TITLE = "## What fits a card\n"
# GiB that a run may use: what drivers leave of the card's size, less 0.5 for CUDA itself.
CARDS = {
    "8 GB (bf16)": ("bf16-mixed", 7.0),
    "16 GB (T4, float32)": ("32-true", 14.0),
    "24 GB (bf16)": ("bf16-mixed", 23.0),
}
# hidden_size, intermediate_size, layers, heads, key-value heads, head_dim, vocab_size, tied
Dimensions = tuple[int, int, int, int, int, int, int, bool]
BASES: dict[str, tuple[str, Dimensions]] = {
    "qwen2.5_0.5b": ("Qwen2Config", (896, 4864, 24, 14, 2, 64, 151936, True)),
    "qwen3_0.6b": ("Qwen3Config", (1024, 3072, 28, 16, 8, 128, 151936, True)),
    "gemma3_1b": ("Gemma3TextConfig", (1152, 6912, 26, 4, 1, 256, 262144, True)),
    "llama3.2_1b": ("LlamaConfig", (2048, 8192, 16, 32, 8, 64, 128256, True)),
    "qwen2.5_1.5b": ("Qwen2Config", (1536, 8960, 28, 12, 2, 128, 151936, True)),
    "smollm3_3b": ("SmolLM3Config", (2048, 11008, 36, 16, 4, 128, 128256, True)),
    "llama2_7b": ("LlamaConfig", (4096, 11008, 32, 32, 32, 128, 32000, False)),
    "llama3_8b": ("LlamaConfig", (4096, 14336, 32, 32, 8, 128, 128256, False)),
}
_NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)
_ROW = 1700  # characters of an answer, each a token of the stand-in for a tokenizer


def table(cache: Any) -> str:
    """Return the table as Markdown."""
    lines = [f"| config | parameters | {' | '.join(CARDS)} |", "|---" * (2 + len(CARDS)) + "|"]
    return "\n".join([*lines, *(row(cache, folder) for folder in BASES)]) + "\n"


def row(cache: Any, folder: str) -> str:
    """Return a line of the table.

    Args:
        cache: The ``HubCache`` with the sources of the configs.
        folder: The folder of configs.
    """
    plans = {precision: plan(cache, folder, precision) for precision, _ in CARDS.values()}
    parameters = next(iter(plans.values()))["parameters"]
    cells = [largest(plans[precision], gib) for precision, gib in CARDS.values()]
    return f"| `{folder}` | {parameters / 1e9:.2f} billion | {' | '.join(cells)} |"


def largest(planned: dict[str, Any], gib: float) -> str:
    """Return the largest micro-batch that a plan fits into memory, or ``none``."""
    sizes = planned["micro_batch_bytes"].items()
    fitting = [int(size) for size, total in sizes if total <= gib * 2**30]
    return str(max(fitting)) if fitting else "none"


def plan(cache: Any, folder: str, precision: str) -> dict[str, Any]:
    """Return what ``fit --plan --json`` prints for the config of a base."""
    import transformers
    from conftest import CHAT_TEMPLATE, byte_tokenizer

    from sft_lab.commands.main import main as run
    from sft_lab.launch.parser import parse

    config = f"--config={CONFIGS / folder / 'sequential.yaml'}"
    kind, dimensions = BASES[folder]
    special = {f"{name}_token_id": 4 for name in ("bos", "eos", "pad")}
    values = dict(zip(_NAMES, dimensions, strict=True)) | special
    tokenizer = byte_tokenizer(bos_token="<system>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        getattr(transformers, kind)(**values).save_pretrained(made)
        cache.add_model(parse([config]).plain["model"]["base"], Path(made))
    asked = [f"--trainer.precision={precision}", "--model.optimizer=paged_adamw_8bit"]
    asked += ["--evaluation.benchmarks.humaneval.init_args.sandbox=isolated_or_limited"]
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()) as err:
        code = run(["fit", "--plan", "--json", config, *asked])
    if code:
        raise RuntimeError(err.getvalue())
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def add_long_rows(cache: Any) -> None:
    """Add the sources and benchmarks of the configs to a cache of the hub, with long rows."""
    from benchmark_files import add_benchmarks

    add_benchmarks(cache)
    answers = [f"{n:4}" * (_ROW // 4) for n in range(256)]  # twice a batch
    math = [{"question": "?" * 40, "answer": f"{answer}#### 1"} for answer in answers]
    halves = {"train": slice(None), "test": slice(0, 4)}
    cache.add_rows("openai/gsm8k", math, subset="main", splits=halves)
    code = [{"instruction": "?" * 40, "input": "", "output": answer} for answer in answers]
    cache.add_json("sahil2801/CodeAlpaca-20k", "code_alpaca_20k.json", code)
    general = [
        {
            "id": answer[:4],
            "conversations": [
                {"from": "human", "value": "?" * 40},
                {"from": "gpt", "value": answer},
            ],
        }
        for answer in answers
    ]
    name = "anon8231489123/ShareGPT_Vicuna_unfiltered"
    cache.add_json(name, "ShareGPT_V3_unfiltered_cleaned_split.json", general)


def section(cache: Any) -> str:
    """Return the section of docs/cost.md."""
    free = ", ".join(
        f"{gib:g} GiB of {card.partition(' (')[0]}" for card, (_, gib) in CARDS.items()
    )
    return f"""{TITLE}
The largest `data.micro_batch_size` with rows of about 2,000 tokens (1,700 of them targets), as
`fit --plan` computes it for each shipped folder of configs: 4-bit weights, LoRA, gradient
checkpointing, `paged_adamw_8bit`, evaluation included. A run may use {free};
a T4 computes no bf16, so its run is in float32. Your rows and prompts may be shorter: plan your
own with `--memory`. Written by `python tests/cards.py`; no card was measured.

{table(cache)}"""


def main() -> None:
    """Write the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "HF_HUB_CACHE": f"{folder}/hub",
            "HF_DATASETS_CACHE": f"{folder}/datasets",
            "HF_HUB_OFFLINE": "1",
            "SFT_LAB_CACHE": f"{folder}/tokens",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        sys.path.insert(0, str(Path(__file__).parent))
        from hub_cache import HubCache

        cache = HubCache(Path(folder) / "hub")
        add_long_rows(cache)
        written = PAGE.read_text(encoding="utf-8").partition(TITLE)[0].rstrip()
        PAGE.write_text(f"{written}\n\n{section(cache)}", encoding="utf-8")


if __name__ == "__main__":
    main()
