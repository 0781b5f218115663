"""Time training against TRL's ``SFTTrainer``, on the world's model and rows.

    python tests/speed/sft_trainer.py [--pairs N] [--steps N] [--packing] [--trl_python PYTHON]

Both train the same NF4 base with the same first values of LoRA adapters (r 32), AdamW, rate,
clipping and rows, in the same batches: 8 rows, padded to the longest, or, with ``--packing``, 4
sequences of 512 tokens, which TRL packs by itself and reads end to end. TRL has its
best settings for a processor: float32 adapters, no gradient checkpointing, nothing saved. The lab
trains as ``fit`` does, with record and callbacks; its evaluation is outside of what is timed. Each
side runs in a process of its own, in turn; a pair's ratio compares tokens per second, without
padding, of the steps after the fifth. ``--trl_python`` is an interpreter that has TRL and the lab.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
WARM_UP = 5
LR = 1e-3


class Clock:
    """Wall and CPU seconds between the end of the warm-up and the last step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.losses = steps, list[float]()
        self.begin = self.spent = (0.0, 0.0)

    def end_step(self, step: int) -> None:
        now = (time.perf_counter(), time.process_time())
        if step == WARM_UP:
            self.begin = now
        if step == self.steps:
            self.spent = (now[0] - self.begin[0], now[1] - self.begin[1])

    def result(self, tokens: int) -> dict[str, Any]:
        return {
            "tokens": tokens,
            "wall": self.spent[0],
            "cpu": self.spent[1],
            "losses": self.losses,
        }


def batch_size(packing: bool) -> int:
    """Return the number of training sequences of a step."""
    return 4 if packing else 8


def settings(steps: int, packing: bool, precision: str, folder: str) -> list[str]:
    """Return the arguments of ``fit``."""
    few = [
        f"--evaluation.benchmarks.world_{name}.init_args.num_examples=2"
        for name in ("math", "code", "general")
    ]
    stage = {"lr": LR, "warmup_ratio": 0, "lr_schedule": "constant", "max_steps": steps}
    return [
        f"--config={ROOT}/configs/world/multi_task.yaml",
        *few,
        "--evaluation.every_n_steps=100000",
        "--evaluation.split=null",
        "--model.lora.lora_dropout=0",
        *(f"--data.stages.all.{key}={value}" for key, value in stage.items()),
        f"--data.batch_size={batch_size(packing)}",
        f"--data.micro_batch_size={batch_size(packing)}",
        f"--data.packing={str(packing).lower()}",
        "--corpus.max_length=512",
        f"--trainer.logger.init_args.tracking_uri=sqlite:///{folder}/mlflow.db",
        f"--trainer.logger.init_args.artifact_location={folder}/artifacts",
        f"--checkpoint.dirpath={folder}/checkpoints",
        f"--trainer.precision={precision}",
    ]


def steps_of(run: Any, steps: int) -> list[list[tuple[list[int], list[int]]]]:
    """Return the ids and labels of the rows of each step, read from the lab's batches."""
    found: list[list[tuple[list[int], list[int]]]] = []
    for batch in run.data.train_dataloader():
        rows = []
        for ids, labels, positions in zip(
            batch["input_ids"], batch["labels"], batch["position_ids"], strict=True
        ):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            for start, end in pairwise(starts):
                targets = (labels[start:end] != -100).nonzero().flatten()
                stop = start + int(targets[-1]) + 1  # a row ends with a target
                rows.append((ids[start:stop].tolist(), labels[start:stop].tolist()))
        found.append(rows)
        if len(found) == steps:
            break
    return found


def count(rows_by_step: list[Any]) -> int:
    """Return the number of tokens after the warm-up, without padding."""
    return sum(len(ids) for rows in rows_by_step[WARM_UP:] for ids, _ in rows)


def write_rows(
    steps: int, packing: bool, precision: str, folder: str, rows_file: str
) -> dict[str, Any]:
    from sft_lab.launch.build import build
    from sft_lab.launch.parser import parse

    run = build(parse(settings(steps, packing, precision, folder)))
    run.data.setup("fit")
    Path(rows_file).write_text(json.dumps(steps_of(run, steps)))
    return {}


def time_lab(
    steps: int, packing: bool, precision: str, folder: str, rows_file: str
) -> dict[str, Any]:
    from lightning import Callback

    from sft_lab.launch import run as running
    from sft_lab.launch.parser import parse
    from sft_lab.terminal import silence

    silence()
    clock = Clock(steps)

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            clock.losses.append(float(outputs["loss"]))
            clock.end_step(trainer.global_step)

    build = running.build

    def watched(*arguments: Any) -> Any:
        run = build(*arguments)
        run.trainer.callbacks.append(Watch())
        return run

    running.build = watched
    running.fit(parse(settings(steps, packing, precision, folder)))
    return clock.result(count(json.loads(Path(rows_file).read_text())))


def time_trl(
    steps: int, packing: bool, precision: str, folder: str, rows_file: str
) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from sft_lab.launch.build import build
    from sft_lab.launch.parser import parse
    from sft_lab.paths import resolve
    from sft_lab.terminal import silence

    silence()
    run = build(parse(settings(steps, packing, precision, folder)))
    run.module.load(precision, packing=packing)
    model = run.module.model
    rows_by_step = json.loads(Path(rows_file).read_text())
    data = Dataset.from_list(
        [
            {"input_ids": ids, "completion_mask": [int(label != -100) for label in labels]}
            for rows in rows_by_step
            for ids, labels in rows
        ]
    )
    clock = Clock(steps)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.end_step(state.global_step)

    arguments = SFTConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=precision == "bf16-mixed",
        gradient_checkpointing=False,
        per_device_train_batch_size=batch_size(packing),
        max_steps=steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        packing=packing,
        max_length=512,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(resolve("world://base")))
    trainer = SFTTrainer(
        model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Watch()]
    )
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL has cast adapters of a 4-bit base to bfloat16
            parameter.data = parameter.data.to(torch.float32)
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    size = arguments.per_device_train_batch_size
    tokens = sum(lengths[WARM_UP * size : steps * size])
    trainer.train()
    clock.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.result(tokens)


SIDES = {"rows": write_rows, "lab": time_lab, "trl": time_trl}


def in_process(side: str, python: str, options: argparse.Namespace, rows: str) -> dict[str, Any]:
    """Run one side in a process of its own; return what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [python, __file__, "--side", side, "--folder", folder, "--rows", rows]
        command += ["--steps", str(options.steps), "--answer", str(answer)]
        command += ["--precision", options.precision, *(["--packing"] if options.packing else [])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--trl_python", default=sys.executable)
    for hidden in ("side", "folder", "rows", "answer"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure = SIDES[options.side]
        result = measure(
            options.steps, options.packing, options.precision, options.folder, options.rows
        )
        Path(options.answer).write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = f"{folder}/rows.json"
        in_process("rows", sys.executable, options, rows)
        ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
        for pair in range(options.pairs):
            lab = in_process("lab", sys.executable, options, rows)
            trl = in_process("trl", options.trl_python, options, rows)
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
