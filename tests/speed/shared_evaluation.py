"""Time an evaluation by two processes with one thread each against one process with one thread.

    python tests/speed/shared_evaluation.py [--repeats N]

The world's base, unquantised and untrained, is scored on the world's 600 items by ``test``, on one
device and on two, which are CPU processes. What counts is the evaluation itself, which the run
prints, without the start of Python and of the processes. Both alternate, and the best of their
repeats counts. The machine needs two idle cores.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [
    "test",
    f"--config={ROOT}/configs/world/dmt.yaml",
    "--model.quantization=fp32",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--data.batch_size=16",
    "--data.micro_batch_size=8",
]


def seconds(num_devices: int) -> float:
    """Return how long the evaluation of a run on so many devices takes."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "sft_lab", *COMMAND, f"--trainer.devices={num_devices}"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    found = re.search(r" in ([\d,.]+) (s|min)\b", done.stdout)
    if found is None:
        raise RuntimeError(f"no evaluation was timed: {done.stdout}")
    return float(found[1].replace(",", "")) * (60 if found[2] == "min" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    times = [(seconds(1), seconds(2)) for _ in range(repeats)]
    one, two = (min(column) for column in zip(*times, strict=True))
    print(f"one process {one:.1f} s, two processes {two:.1f} s: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
