"""Check a CUDA machine against its CPU, time training and evaluation on it, and write one table.

    python tests/speed/gpu.py docs/results/NAME.md [--only NAME ...] [--trl_python PYTHON]
    python tests/speed/gpu.py /tmp/table.md --tiny

Bases are random Llamas of 0.5B and 7B parameters, made here from their configs, so nothing is
downloaded; 7B takes 14 GB of the temporary folder. An entry that fails is a row with its error, the
others go on, and the command exits with 1. ``--only`` takes the beginnings of entries' names.
``--tiny`` takes tiny bases and runs without CUDA too, where both sides are the CPU: that shows that
the script works, and nothing about CUDA.
"""

import argparse
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from gpu_bench import CUDA, Bench, Entry, Row, free
from gpu_checks import checks, numbers
from gpu_timings import timings

from sft_lab.runs.machine import device_name
from sft_lab.terminal import silence

PACKAGES = ("torch", "bitsandbytes", "transformers", "peft", "lightning", "flash_attn", "trl")


def run(entries: Iterable[Entry]) -> Iterator[Row]:
    """Yield the rows of all entries; one that fails gives its error as a row."""
    for name, entry in entries:
        try:
            yield from entry()
        except Exception as fault:
            traceback.print_exc()
            line = (str(fault).splitlines() or [""])[0].replace("|", "/")
            yield Row(name, outcome=f"ERROR: {type(fault).__name__}: {line[:200]}", failed=True)
        free()


def page(rows: Iterable[Row], command: str, *, tiny: bool) -> str:
    """Return the table with hardware and versions."""
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    machine = device_name()
    if CUDA:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        count = torch.cuda.device_count()
        machine = f"{count} x {machine}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    note = (
        ""
        if CUDA
        else "No CUDA: both sides of a check ran on the CPU, which shows nothing about it.\n\n"
    )
    note += "Tiny bases: the times mean nothing.\n\n" if tiny else ""
    lines = [f"| {row.what} | {row.ours} | {row.against} | {row.outcome} |" for row in rows]
    return (
        f"# {machine}\n\n{date.today():%d %B %Y}, `{command}`; {', '.join(versions)}.\n\n{note}"
        "| what | sft_lab | against | outcome |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the Markdown file to write")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--trl_python", default=sys.executable)
    parser.add_argument("--reference", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.reference:
        torch.save(numbers(options.reference), options.out)
        return 0
    if not (options.tiny or CUDA):
        parser.error("this machine has no CUDA; --tiny runs on its CPU")
    silence()
    command = shlex.join(["python", "tests/speed/gpu.py", *(arguments or sys.argv[1:])])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.tiny, options.trl_python)
        chosen = [
            entry
            for entry in [*checks(bench), *timings(bench)]
            if entry[0].startswith(tuple(options.only))
        ]
        for row in run(chosen):
            rows.append(row)
            print(" | ".join(row[:4]), flush=True)
            options.out.write_text(page(rows, command, tiny=options.tiny))
    return int(any(row.failed for row in rows) or not rows)


if __name__ == "__main__":
    sys.exit(main())
