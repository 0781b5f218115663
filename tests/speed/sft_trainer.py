"""Time training against TRL's ``SFTTrainer``, on the world's model and rows.

    python tests/speed/sft_trainer.py [--pairs N] [--steps N] [--packing] [--llama TOKENS]
        [--rows_a_step N] [--vocab N] [--set KEY=VALUE] [--trl_padding_free] [--trl_python PYTHON]

Both train the same NF4 base with the same first values of LoRA adapters (r 32), AdamW, rate,
clipping and rows, in the same batches: 8 rows, padded to the longest, or, with ``--packing``, 4
sequences of 512 tokens, which TRL packs by itself and reads end to end. TRL has its
best settings for a processor: float32 adapters, no gradient checkpointing, nothing saved. The lab
trains as ``fit`` does, with record and callbacks; its evaluation is outside of what is timed. Each
side runs in a process of its own, in turn; a pair's ratio compares tokens per second, without
padding, of the steps after the fifth. ``--trl_python`` is an interpreter that has TRL and the lab.
``--set KEY=VALUE`` changes the config, and TRL's settings where it has the same; ``--set
data.padding_free=true`` is for the lab, ``--trl_padding_free`` for TRL. ``--llama`` trains a random
Llama of 60 million parameters, and more with another vocabulary than 10,000, on rows of so many
tokens, 4 a step, in place of the world's. The peak of memory during these steps is what CUDA
allocates, or on a processor what the process holds. On a machine with CUDA both train there.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from sft_workload import LR, ROOT, WARM_UP, Case, count, llama, steps_of


class Clock:
    """Wall and CPU seconds from the end of the warm-up to the last step, and peak memory."""

    def __init__(self, steps: int) -> None:
        self.steps, self.losses = steps, list[float]()
        self.begin = self.spent = (0.0, 0.0)
        self.memory = 0

    def end_step(self, step: int) -> None:
        if step in (WARM_UP, self.steps):
            self.memory = new_peak()
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


def new_peak() -> int:
    """Return the bytes of memory at their peak since the last call, and begin another peak."""
    from torch import cuda

    if cuda.is_available():
        cuda.synchronize()
        peak = cuda.max_memory_allocated()
        cuda.reset_peak_memory_stats()
        return peak
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    [resident] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(resident)


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
    parser.add_argument("--rows_a_step", type=int, default=4, help="of --llama")
    parser.add_argument("--vocab", type=int, default=10_000, help="of --llama")
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
            size = options.rows_a_step
            path = llama(Path(folder), size * options.steps, options.llama, options.vocab)
            sizes = [f"data.batch_size={size}", f"data.micro_batch_size={size}"]
            longest = f"corpus.max_length={options.llama}"
            case = case._replace(config=path, overrides=[longest, *sizes, *options.set])
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
            peaks = " and ".join(f"{side['memory'] / 2**20:,.0f}" for side in (lab, trl))
            text += f"; peak {peaks} MiB; losses at most {apart:.1e} apart"
            print(f"pair {pair + 1}: {text}", flush=True)
        for clock, found in ratios.items():
            print(f"{clock}: median {median(found):.2f}x, {min(found):.2f} to {max(found):.2f}")


if __name__ == "__main__":
    main()
