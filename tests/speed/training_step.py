"""Time a training step of the world with each of the options that make it faster.

    python tests/speed/training_step.py [--steps N] [--precision bf16-mixed]

All variants train in one process on the same rows, a step of each in turn, so that whatever else
the machine does slows all of them alike. CPU milliseconds of a step without Lightning, by median.
"""

import argparse
import tempfile
import time
from statistics import median
from typing import Any

import torch
from sft_trainer import Case

from sft_lab.launch.build import build
from sft_lab.launch.parser import parse
from sft_lab.terminal import format_table, silence
from sft_lab.training.loss import read_targets

FREE, CACHED = "data.padding_free=true", "model.dequantize=cached"
FUSED = "model.fused_lora=true"
VARIANTS = ((), (FREE,), (CACHED,), (FUSED,), (FREE, CACHED), (FREE, FUSED), (FREE, CACHED, FUSED))


class Side:
    """Train one variant, step by step."""

    def __init__(self, overrides: tuple[str, ...], precision: str, steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = build(parse(Case(steps, False, precision, overrides).arguments(folder)))
            run.data.setup("fit")
        run.module.load(precision, packed_by=run.data.packed_by)
        self.model = run.module.model
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-3)
        self.sources = list(run.data.corpus.sources)
        self.batches = iter(run.data.train_dataloader())
        self.autocast = precision == "bf16-mixed"
        self.losses, self.times = list[float](), list[float]()

    def step(self) -> None:
        batch: Any = next(self.batches)
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            nll = read_targets(self.model, batch, self.sources).nll
        loss = nll.sum() / batch["window_target_tokens"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        self.times.append(1000 * (time.process_time() - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    options = parser.parse_args()
    silence()
    torch.set_num_threads(1)
    sides = [Side(variant, options.precision, options.steps) for variant in VARIANTS]
    for _ in range(options.steps):
        for side in sides:
            side.step()
    plain = sides[0]
    rows = [
        [
            ", ".join(variant) or "none",
            f"{median(side.times[1:]):.1f}",
            f"{median(a / b for a, b in zip(plain.times[1:], side.times[1:], strict=True)):.2f}",
            f"{max(abs(a - b) for a, b in zip(plain.losses, side.losses, strict=True)):.0e}",
        ]
        for variant, side in zip(VARIANTS, sides, strict=True)
    ]
    print(format_table(["options", "ms", "times as fast", "losses apart"], rows))


if __name__ == "__main__":
    main()
