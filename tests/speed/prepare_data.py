"""Time the preparation of 110,142 rows of GSM8K's length: here, and by TRL's SFTTrainer.

    pip install -c constraints.txt trl
    python tests/speed/prepare_data.py [--gsm8k FILE] [--rows N] [--without_trl]

Rows are GSM8K's training rows, repeated with different numbers in front, as many as the paper's
RFT set has. Each job runs in a process of its own: chat template, tokens, and labels on
the answer alone, with the world's tokenizer. TRL does the same by ``assistant_only_loss``, in two
processes. Times are wall seconds without imports; memory is the peak of resident memory, summed
over a job's processes.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
NUM_ROWS = 110_142
BASE = ROOT / "sft_lab" / "world" / "base"
MakeJob = Callable[[Path], Callable[[], int]]


def write_rows(gsm8k: Path, out: Path, num_rows: int) -> None:
    """Write the rows as messages."""
    with gzip.open(gsm8k, "rt", encoding="utf-8") as lines:
        given = [json.loads(line) for line in lines]
    with out.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = given[number % len(given)]
            messages = [
                {"role": "user", "content": f"{number}. {row['question']}"},
                {"role": "assistant", "content": row["answer"]},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def ours(rows: Path) -> Callable[[], int]:
    """Return the lab's job; a second run finds its own cache."""
    import transformers.models.auto.tokenization_auto  # noqa: F401  otherwise imported at first use

    from sft_lab.data.corpus import Corpus
    from sft_lab.data.sources import Source

    def job() -> int:
        corpus = Corpus({"math": Source(str(rows))}, str(BASE))
        corpus.load(["math"])
        return len(corpus.loaded["math"].rows)

    return job


def by_trl(rows: Path) -> Callable[[], int]:
    """Return the job of TRL's SFTTrainer at construction."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(BASE)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    datasets.disable_progress_bars()
    folder = str(rows.parent / "trl")
    settings = SFTConfig(
        folder, assistant_only_loss=True, max_length=2048, dataset_num_proc=2, use_cpu=True,
        report_to="none", bf16=False,
    )  # fmt: skip

    def job() -> int:
        data = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=folder)
        trainer = SFTTrainer(model, args=settings, train_dataset=data, processing_class=tokenizer)
        return len(trainer.train_dataset)

    return job


def run(
    make: Callable[[Path], Callable[[], int]], rows: Path, results: multiprocessing.Queue
) -> None:
    """Make and run a job, and put its rows, seconds and peak memory in MiB into a queue."""
    job = make(rows)
    peak = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        me = psutil.Process()
        while not done.wait(0.05):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    num_rows = job()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    results.put((num_rows, seconds, peak))


def main() -> None:
    """Run the three jobs and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(os.environ.get("SFT_LAB_SHARED") or ROOT.parent / "shared")
    parser.add_argument("--gsm8k", type=Path, default=shared / "data" / "gsm8k" / "train.jsonl.gz")
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--without_trl", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(options.gsm8k, rows, options.rows)
        print(f"{rows.stat().st_size / 2**20:.0f} MiB of JSON")
        os.environ["SFT_LAB_CACHE"] = folder
        found = {}
        jobs = [("sft_lab, cold", ours), ("sft_lab, warm", ours), ("TRL", by_trl)]
        for name, make in jobs[:-1] if options.without_trl else jobs:
            results = context.Queue()
            process = context.Process(target=run, args=(make, rows, results))
            process.start()
            found[name] = results.get()
            process.join()
            num_rows, seconds, peak = found[name]
            print(f"{name:<14} {num_rows:,} rows  {seconds:6.1f} s  {peak:6.0f} MiB", flush=True)
    if "TRL" in found:
        ratio = found["TRL"][1] / found["sft_lab, cold"][1]
        print(f"TRL takes {ratio:.2f} times as long as sft_lab, cold")


if __name__ == "__main__":
    main()
