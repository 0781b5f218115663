"""Compare what two commits train, bit for bit, on this machine.

Trains a tiny random model on rows of its own, packed and padded, with accumulation and evaluations,
once with each commit's code. Losses, learning rates, scores, completions, sample ids and trained
weights must agree exactly.

    python tests/golden.py 825f86b HEAD
    python tests/golden.py HEAD .          # "." is the working tree
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")
THINGS = ("apples", "books", "coins", "stamps", "shells", "pens")
EXACT_METRICS = (
    *(f"train_loss/{name}" for name in ("all", "sums", "chat")),
    *(f"val_loss/{name}" for name in ("sums", "chat")),
    "lr",
    *(f"progress/{name}" for name in ("samples", "tokens", "stage")),
    *(f"gsm8k/{name}" for name in ("strict", "flexible")),
    *(
        f"ifeval/{kind}_{mode}"
        for kind in ("prompt", "instruction")
        for mode in ("strict", "loose")
    ),
)
"""Metrics that every version logs under the same key and that must not change."""

CONFIG = """
seed_everything: 3
trainer: {tree}/configs/trainer.yaml
trainer.precision: 32-true
trainer.log_every_n_steps: 1
corpus:
  sources: {{sums: {{path: sums.jsonl}}, chat: {{path: chat.jsonl}}}}
  template: alpaca
  max_length: 160
  val_rows: 6
  contamination: ignore
evaluation:
  every_n_steps: 7
  weights: {weights}
  batch_size: 8
  benchmarks:
    gsm8k:
      class_path: {gsm8k}
      init_args: {{path: gsm8k.jsonl, source: sums, max_new_tokens: 24}}
    ifeval:
      class_path: {ifeval}
      init_args: {{path: ifeval.jsonl, source: chat, max_new_tokens: 24}}
model: {model}
data:
  k: 1/3
  batch_size: 4
  micro_batch_size: 2
  packing: {packing}
  stages:
    first: {{mixture: {{sums: 1}}, epochs: 2, lr: 2e-2}}
    second: {{mixture: {{chat: 1, sums: "${{data.k}}"}}, epochs: 1, lr: 1e-2, optimizer: keep}}
"""
VARIANTS = {
    "packed": {
        "packing": "true",
        "weights": "dequantized",
        "model": "{base: base, quantization: nf4, lora: {r: 4, lora_alpha: 8, lora_dropout: 0.1}}",
    },
    "padded": {
        "packing": "false",
        "weights": "merged",
        "model": "{base: base, quantization: fp32, lora: {r: 4, lora_alpha: 8}}",
    },
    "full": {
        "packing": "false",
        "weights": "live",
        "model": "{base: base, quantization: fp32, lora: null}",
    },
}


def write_inputs(folder: Path) -> None:
    """Write two sources, two benchmarks and a random base; the same at every call."""
    chance = random.Random(0)

    def problem() -> tuple[str, int, int]:
        a, b = chance.randint(1, 4), chance.randint(1, 4)
        name, thing = chance.choice(NAMES), chance.choice(THINGS)
        return f"{name} has {a} {thing} and gets {b} more. How many {thing} now?", a, b

    sums = [
        _row(question, f"{a} + {b} = {a + b}\n#### {a + b}")
        for question, a, b in (problem() for _ in range(60))
    ]
    chat = [
        _row(
            f"Say {count} words about {thing}, as {name} would.",
            " ".join(chance.choice(THINGS) for _ in range(count)),
        )
        for count, thing, name in (
            (chance.randint(2, 6), chance.choice(THINGS), chance.choice(NAMES)) for _ in range(50)
        )
    ]
    items = [
        {"question": question, "answer": f"{a} + {b}\n#### {a + b}"}
        for question, a, b in (problem() for _ in range(20))
    ]
    prompts = [
        {
            "key": number,
            "prompt": f"Write about {chance.choice(THINGS)}. Use no commas.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [{}, {"relation": "less than", "num_words": 3 + number % 5}],
        }
        for number in range(12)
    ]
    for name, rows in (
        ("sums", sums),
        ("chat", chat),
        ("gsm8k", items),
        ("ifeval", prompts),
    ):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    _write_base(folder / "base", [json.dumps(row) for row in (*sums, *chat, *items, *prompts)])


def _row(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def _write_base(folder: Path, texts: list[str]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=["<pad>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer.get_vocab()),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            initializer_range=0.1,
        )
    ).save_pretrained(folder)


def run(tree: Path, inputs: Path, variant: str, folder: Path) -> dict[str, Any]:
    """Train one variant with a tree's code and return what it recorded."""
    shutil.copytree(inputs, folder)
    moved = (tree / "sft_lab/evaluation/benchmarks").is_dir()
    classes = {
        "gsm8k": f"sft_lab.evaluation.{'benchmarks.' if moved else ''}gsm8k.GSM8K",
        "ifeval": f"sft_lab.evaluation.{'benchmarks.ifeval.' if moved else 'ifeval_'}"
        "benchmark.IFEval",
    }
    config = CONFIG.format(tree=tree, **VARIANTS[variant], **classes)
    (folder / "golden.yaml").write_text(config, encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "SFT_LAB_CACHE": str(folder / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-m", "sft_lab", "fit", "--config", "golden.yaml"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{tree}: fit of variant {variant} failed\n{done.stdout}\n{done.stderr}")
    return {**_metrics(folder / "mlruns/mlflow.db"), **_artifacts(folder / "mlruns/artifacts")}


def _metrics(database: Path) -> dict[str, Any]:
    with sqlite3.connect(database) as store:
        points = store.execute("SELECT key, step, value FROM metrics").fetchall()
    found = {f"{key} at {step}": value for key, step, value in points if key in EXACT_METRICS}
    missing = set(EXACT_METRICS) - {name.split(" at ")[0] for name in found}
    if missing:
        raise SystemExit(f"{database}: not logged: {', '.join(sorted(missing))}")
    return found


def _artifacts(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*/artifacts/**/*")):
        name = "/".join(path.relative_to(folder).parts[2:])
        if name.startswith(("samples/", "windows/")) and path.suffix == ".tsv":
            found[name] = path.read_text(encoding="utf-8")
        elif name.startswith("answers/") and path.suffix == ".json":
            table = json.loads(path.read_text(encoding="utf-8"))
            wanted = [table["columns"].index(column) for column in ("id", "completion")]
            found[name] = [[row[index] for index in wanted] for row in table["data"]]
        elif path.suffix == ".safetensors":
            for tensor, value in load_file(path).items():
                found[f"{name}: {tensor}"] = hashlib.sha256(value.tobytes()).hexdigest()
    for kind in ("samples/", "windows/", "answers/", "stages/"):
        if not any(name.startswith(kind) for name in found):
            raise SystemExit(f"{folder}: no artifacts below {kind}")
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return a line for everything that only one side has, or that differs."""
    lines = []
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            lines.append(f"{name}: only in the {'first' if name in first else 'second'}")
        elif first[name] != second[name]:
            shown = [repr(side[name])[:60] for side in (first, second)]
            lines.append(f"{name}: {shown[0]} against {shown[1]}")
    return lines


def check_out(commit: str, folder: Path) -> Path:
    """Return a folder with a commit's files; "." is the working tree itself."""
    if commit == ".":
        return ROOT
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", help='a commit, or "." for the working tree')
    parser.add_argument("second", help='a commit, or "." for the working tree')
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = folder / "inputs"
        inputs.mkdir()
        write_inputs(inputs)
        trees = [
            check_out(commit, folder / side)
            for commit, side in ((options.first, "first"), (options.second, "second"))
        ]
        for variant in options.variants:
            results = [
                run(tree, inputs, variant, folder / f"{variant}_{index}")
                for index, tree in enumerate(trees)
            ]
            found = differences(*results)
            faults += len(found)
            scores = [value for key, value in results[0].items() if key.startswith("gsm8k/flex")]
            print(
                f"{variant}: {len(results[0]):,} values, "
                f"gsm8k/flexible from {min(scores):.2f} to {max(scores):.2f}, "
                f"{len(found)} differ"
            )
            for line in found[:20]:
                print(f"  {line}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
