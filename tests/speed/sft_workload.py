"""What the lab and TRL's ``SFTTrainer`` both train: a config, a random Llama, and their rows."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
WARM_UP = 5
LR = 1e-3
WORLD = f"{ROOT}/configs/world/multi_task.yaml"


class Case(NamedTuple):
    """What both sides train; ``overrides`` are further values of the config, as ``KEY=VALUE``."""

    steps: int
    packing: bool
    precision: str
    overrides: Sequence[str] = ()
    trl_padding_free: bool = False
    config: str = WORLD

    def arguments(self, folder: str) -> list[str]:
        """Return the arguments of ``fit``."""
        size = 4 if self.packing else 8
        few = "--evaluation.benchmarks.world_{}.init_args.num_examples=2"
        benchmarks = ("math", "code", "general") if self.config == WORLD else ()
        stage = {"lr": LR, "warmup_ratio": 0, "lr_schedule": "constant", "max_steps": self.steps}
        return [
            f"--config={self.config}",
            *map(few.format, benchmarks),
            "--evaluation.every_n_steps=100000",
            "--evaluation.split=null",
            "--model.lora.lora_dropout=0",
            *(f"--data.stages.all.{key}={value}" for key, value in stage.items()),
            f"--data.batch_size={size}",
            f"--data.micro_batch_size={size}",
            f"--data.packing={str(self.packing).lower()}",
            "--corpus.max_length=512",
            f"--trainer.logger.init_args.tracking_uri=sqlite:///{folder}/mlflow.db",
            f"--trainer.logger.init_args.artifact_location={folder}/artifacts",
            f"--checkpoint.dirpath={folder}/checkpoints",
            f"--trainer.precision={self.precision}",
            *(f"--{override}" for override in self.overrides),
        ]


LLAMA = """
seed_everything: 0
trainer: {root}/configs/trainer.yaml
model: {{base: {folder}/llama, quantization: nf4, lora: {{r: 32, lora_alpha: 64}}}}
corpus: {{sources: {{numbers: {{path: {folder}/rows.jsonl}}}}, val_rows: 0}}
evaluation:
  benchmarks:
    world_math:
      class_path: sft_lab.evaluation.benchmarks.world.WorldMath
      init_args:
        path: world://data/world_math.jsonl
        source: numbers
        max_new_tokens: 1
        num_examples: 1
data:
  stages:
    all: {{mixture: {{numbers: 1}}, epochs: 1, lr: 1e-3}}
"""


def llama(folder: Path, num_rows: int, num_tokens: int, vocab_size: int) -> str:
    """Write a random Llama of 12 layers of 512, rows of so many tokens, and their config.

    Returns:
        Path of the config.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    AutoTokenizer.from_pretrained(ROOT / "sft_lab/world/base").save_pretrained(folder / "llama")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(num_rows):
            digits = f"{number:0{(num_tokens - 7) // 2}}"  # two tokens each; the rest has seven
            file.write(json.dumps({"instruction": "Count.", "output": " ".join(digits)}) + "\n")
    path = folder / "llama.yaml"
    path.write_text(LLAMA.format(root=ROOT, folder=folder))
    return str(path)


def steps_of(run: Any, steps: int) -> list[list[tuple[list[int], list[int]]]]:
    """Return the ids and labels of the rows of each step, read from the lab's batches."""
    found: list[list[tuple[list[int], list[int]]]] = []
    rows: list[tuple[list[int], list[int]]] = []
    for place, batch in enumerate(run.data.train_dataloader(), start=1):
        for ids, labels, positions in zip(
            batch["input_ids"], batch["labels"], batch["position_ids"], strict=True
        ):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            for start, end in pairwise(starts):
                targets = (labels[start:end] != -100).nonzero().flatten()
                stop = start + int(targets[-1]) + 1  # a row ends with a target
                rows.append((ids[start:stop].tolist(), labels[start:stop].tolist()))
        if place % (run.data.batch_size // run.data.micro_batch_size) == 0:
            found.append(rows)
            rows = []
        if len(found) == steps:
            break
    return found


def count(rows_by_step: list[Any]) -> int:
    """Return the number of tokens after the warm-up, without padding."""
    return sum(len(ids) for rows in rows_by_step[WARM_UP:] for ids, _ in rows)
