"""Measure on real rows how full packed sequences are, and how evenly sources stay spread.

    python tests/speed/packing_fill.py [FOLDER]

GSM8K, both files of Code Alpaca and the sample of ShareGPT from FOLDER: one pass of all rows that
fit, and one of ShareGPT with a 16th of the others, which is short and has long rows. Fill is the
share of packed sequences without padding; padding is its share in micro-batches of 8 rows without
packing, and padding-free ones, whose attention is given as a part of that over padded rows. A
source's share is its share of rows, in any span of a 20th of the pass.
"""

import argparse
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, product
from pathlib import Path

from sft_lab.data.corpus import Corpus
from sft_lab.data.sources import Source
from sft_lab.evaluation.generation import batches_longest_first
from sft_lab.terminal import format_table, percent
from sft_lab.training.order import RowRef
from sft_lab.training.packing import look_ahead_for, pack_evenly
from sft_lab.training.plan import StagePlan, plan_stage

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("SFT_LAB_SHARED") or ROOT.parent / "shared")
FILES = {
    "math": "gsm8k/train.jsonl.gz",
    "alpaca": "code_alpaca/code_alpaca_2k.json",
    "codegen": "code_alpaca/new_codealpaca.json.gz",
    "general": "sharegpt/sharegpt92k_sample.jsonl.gz",
}
GPT2 = SHARED / "tokenizers" / "gpt2"
WORLD = ROOT / "sft_lab" / "world" / "base"
MICRO_BATCH_SIZE = 8
STEP_SIZE = 64


def padding(batches: Sequence[Sequence[int]]) -> float:
    """Return the share of padding in batches of rows of so many tokens."""
    room = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(sum(batch) for batch in batches) / room


def padding_free(batches: Sequence[Sequence[int]], max_length: int) -> str:
    """Describe batches of rows of so many tokens, laid end to end."""
    packed = [
        [sum(batch[place] for place in places) for places in pack_evenly(batch, max_length)]
        for batch in batches
    ]
    attention = [
        sum(len(batch) * max(batch) ** 2 for batch in laid_out) for laid_out in (packed, batches)
    ]
    return (
        f"padding_free: {percent(padding(packed))} % in the order of the plan, attention "
        f"{attention[0] / attention[1]:.2f} of that over padded rows"
    )


def cut(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return lengths in batches, in order."""
    return [list(lengths[start : start + size]) for start in range(0, len(lengths), size)]


def extremes(order: Sequence[RowRef], source: str) -> tuple[float, float]:
    """Return the smallest and the largest share of a source's rows in any 20th of the order."""
    size = len(order) // 20
    sums = list(accumulate((ref.source == source for ref in order), initial=0))
    shares = [(sums[end] - sums[end - size]) / size for end in range(size, len(sums))]
    return min(shares), max(shares)


def report(title: str, num_tokens: Mapping[str, Sequence[int]], max_length: int) -> None:
    """Print the figures of one pass over rows of so many tokens."""
    rows = {source: range(len(counts)) for source, counts in num_tokens.items()}

    def planned(packed_length: int | None) -> StagePlan:
        return plan_stage(
            "s",
            rows,
            num_tokens,
            batch_size=STEP_SIZE,
            seed=0,
            packed_length=packed_length,
            epochs=1,
        )

    plain, packed = planned(None), planned(max_length)
    order, packed_order = list(plain.rows()), list(packed.rows())
    lengths = [num_tokens[ref.source][ref.index] for ref in order]
    num_sequences = sum(len(window) for window in packed.windows)
    fill = sum(lengths) / (num_sequences * max_length)
    sorted_steps = [
        batch
        for step in cut(lengths, STEP_SIZE)
        for batch in cut(sorted(step, reverse=True), MICRO_BATCH_SIZE)
    ]
    longest_first = [
        [lengths[index] for index in batch]
        for batch in batches_longest_first(lengths, MICRO_BATCH_SIZE)
    ]
    print(f"\n{title}, max_length {max_length}: {len(order):,} rows, {sum(lengths):,} tokens")
    print(
        f"packed: {num_sequences:,} sequences, fill {percent(fill)} %, rows move by less than "
        f"{look_ahead_for(lengths, max_length)} places"
    )
    print(
        f"padding without packing: {percent(padding(cut(lengths, MICRO_BATCH_SIZE)))} % in the "
        f"order of the plan, {percent(padding(sorted_steps))} % with steps of {STEP_SIZE} rows "
        f"sorted, {percent(padding(longest_first))} % with the whole pass sorted"
    )
    print(padding_free(cut(lengths, MICRO_BATCH_SIZE), max_length))
    counts = Counter(ref.source for ref in order)
    table = []
    for source, count in counts.items():
        low, high = extremes(order, source)
        packed_low, packed_high = extremes(packed_order, source)
        shares = (count / len(order), low, high, packed_low, packed_high)
        table.append([source, f"{count:,}", *map(percent, shares)])
    header = ["source", "rows", "%", "20ths: least", "most", "packed: least", "most"]
    print(format_table(header, table))


def ending_answers(tokenizer: Path, out: Path) -> Path:
    """Copy a tokenizer so that its end token, recognised only between spaces, is so anywhere."""
    for file in tokenizer.iterdir():
        content = file.read_text(encoding="utf-8")
        for flag in ("single_word", "lstrip", "rstrip"):
            content = content.replace(f'"{flag}": true', f'"{flag}": false')
        (out / file.name).write_text(content, encoding="utf-8")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED / "data")
    folder = parser.parse_args().folder
    logging.disable(logging.WARNING)  # about rows that do not fit
    sources = {source: Source(str(folder / file), max_dropped=1) for source, file in FILES.items()}
    with tempfile.TemporaryDirectory() as gpt2:
        tokenizers = {
            "gpt2": (ending_answers(GPT2, Path(gpt2)), "alpaca"),
            "world": (WORLD, None),
        }
        for name, max_length in product(tokenizers, (2048, 1024)):
            tokenizer, template = tokenizers[name]
            corpus = Corpus(sources, str(tokenizer), template=template, max_length=max_length)
            corpus.load(sources)
            num_tokens = {s: loaded.num_tokens.tolist() for s, loaded in corpus.loaded.items()}
            report(f"{name}, everything", num_tokens, max_length)
            replayed = {
                source: counts if source == "general" else counts[: len(counts) // 16]
                for source, counts in num_tokens.items()
            }
            report(f"{name}, general and a 16th of the others", replayed, max_length)


if __name__ == "__main__":
    main()
