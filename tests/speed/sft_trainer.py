"""Time training against TRL's ``SFTTrainer``, on the world's model and rows.

    python tests/speed/sft_trainer.py [--pairs N] [--steps N] [--packing] [--llama TOKENS]
        [--set KEY=VALUE] [--trl_padding_free] [--trl_python PYTHON]

Both train the same NF4 base with the same first values of LoRA adapters (r 32), AdamW, rate,
clipping and rows, in the same batches: 8 rows, padded to the longest, or, with ``--packing``, 4
sequences of 512 tokens, which TRL packs by itself and reads end to end. TRL has its
best settings for a processor: float32 adapters, no gradient checkpointing, nothing saved. The lab
trains as ``fit`` does, with record and callbacks; its evaluation is outside of what is timed. Each
side runs in a process of its own, in turn; a pair's ratio compares tokens per second, without
padding, of the steps after the fifth. ``--trl_python`` is an interpreter that has TRL and the lab.
``--set KEY=VALUE`` changes the config, and TRL's settings where it has the same; ``--set
data.padding_free=true`` is for the lab, ``--trl_padding_free`` for TRL. ``--llama`` trains a random
Llama of 60 million parameters on 4 rows of so many tokens a step in place of the world's. On a
machine with CUDA both train there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
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


def llama(folder: Path, num_rows: int, num_tokens: int) -> str:
    """Write a random Llama of 60 million parameters, rows of so many tokens, and their config.

    Returns:
        Path of the config.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=10_000,
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


class Clock:
    """Wall and CPU seconds from the end of the warm-up to the last step, and CUDA's peak memory."""

    def __init__(self, steps: int) -> None:
        self.steps, self.losses = steps, list[float]()
        self.begin = self.spent = (0.0, 0.0)
        self.memory: int | None = None

    def end_step(self, step: int) -> None:
        from torch import cuda

        if cuda.is_available() and step in (WARM_UP, self.steps):
            cuda.synchronize()
            self.memory = cuda.max_memory_allocated()
            cuda.reset_peak_memory_stats()
        now = (time.perf_counter(), time.process_time())
        if step == WARM_UP:
            self.begin = now
        if step == self.steps:
            self.spent = (now[0] - self.begin[0], now[1] - self.begin[1])

    def result(self, tokens: int) -> dict[str, Any]:
        wall, cpu = self.spent
        if not wall:
            raise RuntimeError(f"fewer than {self.steps} steps were trained: too few rows")
        times = {"tokens": tokens, "wall": wall, "cpu": cpu}
        return {**times, "losses": self.losses, "memory": self.memory}


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


def write_rows(case: Case, folder: str, rows_file: str) -> dict[str, Any]:
    from sft_lab.launch.build import build
    from sft_lab.launch.parser import parse

    run = build(parse(case.arguments(folder)))
    run.data.setup("fit")
    Path(rows_file).write_text(json.dumps(steps_of(run, case.steps)))
    return {}


def time_lab(case: Case, folder: str, rows_file: str) -> dict[str, Any]:
    from lightning import Callback

    from sft_lab.launch import run as running
    from sft_lab.launch.parser import parse
    from sft_lab.terminal import silence

    silence()
    clock = Clock(case.steps)

    class Watch(Callback):
        def __init__(self) -> None:
            self.step, self.nll, self.tokens = 0, 0, 0

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            self.nll += outputs["nll"].sum()
            self.tokens += outputs["target_tokens"].sum()
            if trainer.global_step > self.step:
                clock.losses.append(float(self.nll / self.tokens))
                clock.end_step(trainer.global_step)
                self.step, self.nll, self.tokens = trainer.global_step, 0, 0

    build = running.build

    def watched(*arguments: Any) -> Any:
        run = build(*arguments)
        run.trainer.callbacks.append(Watch())
        return run

    running.build = watched
    try:
        running.fit(parse(case.arguments(folder)))
    finally:
        running.build = build
    return clock.result(count(json.loads(Path(rows_file).read_text())))


def time_trl(case: Case, folder: str, rows_file: str) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from sft_lab.launch.build import build
    from sft_lab.launch.parser import parse
    from sft_lab.paths import resolve
    from sft_lab.terminal import silence

    silence()
    plain = ["--model.fused_lora=false", "--model.dequantize=each_step"]  # the lab's own
    run = build(parse([*case.arguments(folder), *plain]))
    run.module.load(case.precision, packed_by=run.data.packed_by)
    model = run.module.model
    micro_batch = run.data.micro_batch_size
    accumulation = run.data.batch_size // micro_batch
    rows_by_step = json.loads(Path(rows_file).read_text())
    data = Dataset.from_list(
        [
            {"input_ids": ids, "completion_mask": [int(label != -100) for label in labels]}
            for rows in rows_by_step
            for ids, labels in rows
        ]
    )
    clock = Clock(case.steps)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.end_step(state.global_step)

    arguments = SFTConfig(
        output_dir=folder,
        use_cpu=not torch.cuda.is_available(),
        bf16=case.precision == "bf16-mixed",
        gradient_checkpointing=run.module.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        max_steps=case.steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        packing=case.packing,
        padding_free=case.trl_padding_free,
        max_length=None if case.trl_padding_free else run.config.plain["corpus"]["max_length"],
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(resolve(run.config.tokenizer)))
    trainer = SFTTrainer(
        model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Watch()]
    )
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL has cast adapters of a 4-bit base to bfloat16
            parameter.data = parameter.data.to(torch.float32)
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    size = micro_batch * accumulation
    tokens = sum(lengths[WARM_UP * size : case.steps * size])
    trainer.train()
    clock.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.result(tokens)


SIDES = {"rows": write_rows, "lab": time_lab, "trl": time_trl}


def in_process(
    side: str, python: str, case: Case, rows: str, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run one side in a process of its own; return what it measured.

    Raises:
        RuntimeError: If it fails, with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [python, __file__, "--side", side, "--folder", folder, "--rows", rows]
        command += ["--case", json.dumps(case), "--answer", str(answer)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.stderr.write(done.stderr)
            raise RuntimeError(f"{side}: {(done.stderr.splitlines() or ['no output'])[-1]}")
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--llama", type=int, metavar="TOKENS")
    parser.add_argument("--trl_padding_free", action="store_true")
    parser.add_argument("--trl_python", default=sys.executable)
    for hidden in ("side", "case", "folder", "rows", "answer"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        case = Case(*json.loads(options.case))
        result = SIDES[options.side](case, options.folder, options.rows)
        Path(options.answer).write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = f"{folder}/rows.json"
        case = Case(
            options.steps,
            options.packing,
            options.precision,
            options.set,
            options.trl_padding_free,
        )
        if options.llama is not None:
            path = llama(Path(folder), 4 * options.steps, options.llama)
            of_llama = [
                f"corpus.max_length={options.llama}",
                *map("data.{}batch_size=4".format, ("", "micro_")),
            ]
            case = case._replace(config=path, overrides=[*of_llama, *options.set])
        in_process("rows", sys.executable, case, rows)
        ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
        for pair in range(options.pairs):
            lab = in_process("lab", sys.executable, case, rows)
            trl = in_process("trl", options.trl_python, case, rows)
            speeds = {
                clock: (lab["tokens"] / lab[clock], trl["tokens"] / trl[clock]) for clock in ratios
            }
            for clock, (ours, theirs) in speeds.items():
                ratios[clock].append(ours / theirs)
            apart = max(abs(a - b) for a, b in zip(lab["losses"], trl["losses"], strict=True))
            text = ", ".join(
                f"{clock}: {ours:,.0f} and {theirs:,.0f} tokens/s, {ours / theirs:.2f}x"
                for clock, (ours, theirs) in speeds.items()
            )
            print(f"pair {pair + 1}: {text}; losses at most {apart:.1e} apart", flush=True)
        for clock, found in ratios.items():
            print(f"{clock}: median {median(found):.2f}x, {min(found):.2f} to {max(found):.2f}")


if __name__ == "__main__":
    main()
