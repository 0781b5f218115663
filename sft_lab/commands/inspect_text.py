"""An inspection for people: stages, sources, lengths of rows, and rendered samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from statistics import median
from typing import Any

from sft_lab.data.intake_report import unused_line
from sft_lab.model.coverage import Coverage
from sft_lab.terminal import columns, counted, fitted_table, percent, visible, wrapped

_NUM_BINS = 10
_BAR_WIDTH = 40
_MAX_CONTAMINATED = 5  # rows shown per source and benchmark
_TRAINED, _SPECIAL, _PLAIN = "\033[32m", "\033[2m", "\033[0m"


def inspection_text(found: Mapping[str, Any], *, color: bool) -> str:
    """Return an inspection as text.

    Args:
        found: The result of ``inspection``.
        color: Show trained tokens green and special ones dim, with ANSI codes; otherwise put
            trained text between ⟦ and ⟧.
    """
    sources = found["sources"]
    blocks = [_source_table(sources), _length_table(sources), _stage_table(found["stages"])]
    if "model" in found:
        model = found["model"]
        line = model["error"] if "error" in model else f"model: {Coverage(**model)}"
        blocks.append(wrapped(line))
    blocks += [_histogram(name, source["lengths"]) for name, source in sources.items()]
    blocks += [_sample(sample, color) for sample in found["samples"]]
    return "\n\n".join(blocks)


def _stage_table(stages: Mapping[str, Any]) -> str:
    counts = {"samples": "samples", "tokens": "tokens", "target_tokens": "trained"}
    shares = [cell for title in counts.values() for cell in (title, "%")]
    header = ["stage", "source", "asked", "rows", *shares, "steps"]
    rows = []
    for name, stage in stages.items():
        mixture = stage["mixture"].values()
        total = {key: sum(part[key] for part in mixture) for key in counts}
        for index, (source, part) in enumerate(stage["mixture"].items()):
            parts = [
                cell
                for key in counts
                for cell in (f"{part[key]:,}", percent(part[key] / total[key]))
            ]
            title = "" if index else name
            rows.append([title, source, _share(part["asked"]), f"{part['rows']:,}", *parts, "-"])
        all_rows = f"{sum(part['rows'] for part in mixture):,}"
        totals = [cell for key in counts for cell in (f"{total[key]:,}", percent(1.0))]
        rows.append(["", "all", "-", all_rows, *totals, f"{stage['steps']:,}"])
    packed = [
        f"{name}: packed into {stage['sequences']:,} sequences, {percent(stage['fill'])} % full"
        for name, stage in stages.items()
        if "fill" in stage
    ]
    guarded = [
        f"{name}: a guard chooses the replay share of {source}: {', '.join(shares)}"
        for name, stage in stages.items()
        for source, shares in stage.get("guarded", {}).items()
    ]
    notes = ["trained: tokens that carry loss", *packed, *guarded]
    return "\n".join([fitted_table(header, rows, keys=2), *map(wrapped, notes)])


def _share(requested: Any) -> str:
    if isinstance(requested, Mapping):
        return " ".join(f"{amount:,} {unit}" for unit, amount in requested.items())
    return str(requested)


def _source_table(sources: Mapping[str, Any]) -> str:
    """Return the whereabouts of every row of a source's file, and why rows are left out."""
    header = ["source", "rows in file", "left out", "held out", "in no stage", "in a stage"]
    rows, reasons = [], []
    for name, source in sources.items():
        left_out, trained = sum(source["dropped"].values()), source["trained"]
        unused = source["rows"] + source["split"] - left_out - source["held_out"] - trained
        counts = (source["rows"], left_out, source["held_out"], unused, trained)
        rows.append([name, *(f"{value:,}" for value in counts)])
        reasons += [f"{name}: {line}" for line in _reasons(source)]
    return "\n".join([fitted_table(header, rows), *map(wrapped, reasons)])


def _length_table(sources: Mapping[str, Any]) -> str:
    rows = []
    for name, source in sources.items():
        lengths = source["lengths"]
        spread = (lengths[0], median(lengths), lengths[int(0.95 * (len(lengths) - 1))], lengths[-1])
        rows.append([name, *(f"{value:,.0f}" for value in spread)])
    return fitted_table(["tokens of a row", "shortest", "median", "95 % below", "longest"], rows)


def _reasons(source: Mapping[str, Any]) -> list[str]:
    """Return a line per reason for leaving out or repairing rows, each with an example."""
    file = Path(source["path"]).name

    def example(place: str) -> str:
        return f"e.g. {place} of {file}"

    changes = [("left out", source["dropped"]), ("repaired", source["repaired"])]
    lines = [
        f"{count:,} {what}: {visible(reason)} ({example(source['examples'][reason])})"
        for what, counts in changes
        for reason, count in counts.items()
    ]
    if source["split"]:
        lines.append(f"{counted(source['split'], 'row')} more than the file has are made so")
    if source["duplicates"]:
        repeats = counted(source["duplicates"], "row repeats", "rows repeat")
        lines.append(f"{repeats} an earlier row, counted above like the others")
    if unused := unused_line(source["unused_keys"]):
        lines.append(visible(unused))
    for benchmark, count in source["contaminated"].items():
        rows = counted(count, "row contains", "rows contain")
        lines.append(f"{rows} an item of {benchmark}, or 13 words of one:")
        found = (row for row in source["contaminated_rows"] if f": {benchmark} " in row)
        lines += [f"  {row}" for row in islice(found, _MAX_CONTAMINATED)]
    return lines


def _histogram(name: str, lengths: Sequence[int]) -> str:
    """Return a histogram of row lengths in tokens."""
    first = lengths[0]
    width = (lengths[-1] - first) // _NUM_BINS + 1
    longest_bar = min(_BAR_WIDTH, (columns() or 80) - 24)
    counts = Counter((length - first) // width for length in lengths)
    lines = [f"{name}: rows by length in tokens"]
    for index in range(max(counts) + 1):
        start = first + index * width
        label = f"{start}-{start + width - 1}" if width > 1 else f"{start}"
        bar = "█" * round(longest_bar * counts[index] / max(counts.values()))
        lines.append(f"{label:>12}  {bar or '▏' * bool(counts[index])} {counts[index]:,}")
    return "\n".join(lines)


def _sample(sample: Mapping[str, Any], color: bool) -> str:
    parts = sample["pieces"]
    tokens = sum(part["tokens"] for part in parts)
    trained = sum(part["tokens"] for part in parts if part["trained"])
    head = (
        f"{sample['stage']}, {sample['source']} {sample['sample_id'][:8]}: "
        f"{counted(tokens, 'token')}, {trained:,} trained"
    )
    if color:
        return head + "\n" + "".join(_colored(part) for part in parts)
    body = ""
    for is_trained, group in groupby(parts, key=lambda part: part["trained"]):
        text = visible("".join(part["text"] for part in group))
        body += f"⟦{text}⟧" if is_trained else text
    return f"{head}\n{body}"


def _colored(part: Mapping[str, Any]) -> str:
    codes = (_TRAINED if part["trained"] else "") + (_SPECIAL if part["special"] else "")
    # A trained line break gets a visible mark: colour does not show at the end of a line.
    text = visible(part["text"])
    text = text.replace("\n", "↵\n") if part["trained"] else text
    return f"{codes}{text}{_PLAIN}" if codes else text
