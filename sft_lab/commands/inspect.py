"""``inspect``: show what a config trains on, down to the sample, without loading a model."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from statistics import median
from typing import Any

from sft_lab.commands.arguments import add_json, command_parser, in_color
from sft_lab.data.intake_report import unused_line
from sft_lab.data.rendering import Renderer
from sft_lab.data.tokenized_row import IGNORED, TokenizedRow
from sft_lab.errors import RequestError
from sft_lab.launch.build import plan_data
from sft_lab.launch.parser import parse
from sft_lab.terminal import format_table, percent, silence, to_json, visible
from sft_lab.training.batches import bin_length
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.order import RowRef
from sft_lab.training.plan import StagePlan

_NUM_BINS = 10
_BAR_WIDTH = 40
_MAX_CONTAMINATED = 5  # rows shown per source and benchmark
_TRAINED, _SPECIAL, _PLAIN = "\033[32m", "\033[2m", "\033[0m"


def main(arguments: list[str]) -> int:
    """Print what a config trains on."""
    parser = command_parser(
        "inspect", usage="sft-lab inspect --config C [--KEY VALUE ...] [--stage S] [-n N] [--json]"
    )
    parser.add_argument("--stage", metavar="S", help="this stage only")
    parser.add_argument(
        "-n", type=int, default=1, help="samples per source and stage; default: %(default)s"
    )
    add_json(parser)
    options, rest = parser.parse_known_args(arguments)
    if options.n < 0:
        raise RequestError(f"-n must be 0 or more, got {options.n}.")
    silence()
    if not any(argument.partition("=")[0] in ("--config", "-c") for argument in rest):
        raise RequestError("inspect needs --config FILE, for instance configs/world/dmt.yaml.")
    log = logging.getLogger("sft_lab.data")
    level = log.level
    log.setLevel(logging.ERROR)  # what it warns about is printed as part of the inspection
    try:
        data = plan_data(parse(rest), options.stage)
        found = inspection(data, options.stage, options.n)
    finally:
        log.setLevel(level)
    if options.json:
        print(to_json(found))
    else:
        print(inspection_text(found, color=in_color()))
    return 0


def inspection(data: StagedDataModule, stage: str | None, num_samples: int) -> dict[str, Any]:
    """Return what a run's stages train on.

    Args:
        data: A planned data module.
        stage: The stage to inspect; default: all.
        num_samples: Samples to render per source and stage.

    Returns:
        ``stages`` by name: ``steps``, ``passes``, ``sequences`` and their ``fill`` in [0, 1] if
        rows are packed, ``guarded`` with the ladder of shares by source if there is a guard,
        ``mixture`` by source with ``asked``, ``rows``, ``samples``, ``tokens`` and
        ``target_tokens``; ``sources`` by name: ``path``, all counts of ``IntakeReport``,
        ``held_out``, ``lengths`` in tokens; and ``samples`` in pieces.
    """
    modules = [m for m in data.stage_modules if stage in (None, m.plan.name)]
    loaded = data.corpus.loaded
    num_tokens = {name: source.num_tokens for name, source in loaded.items()}
    num_target_tokens = {name: source.num_target_tokens for name, source in loaded.items()}
    nothing = {"samples": 0, "tokens": 0, "target_tokens": 0}  # if a stage ends before its rows
    stages: dict[str, dict[str, Any]] = {}
    for module in modules:
        plan = module.plan
        counted = plan.count(num_tokens, num_target_tokens)
        different = _different_rows(plan)
        stages[plan.name] = {
            "steps": plan.num_steps,
            "passes": len(plan.passes),
            **_packed(data, plan),
            **_guarded(data, plan),
            "mixture": {
                name: {
                    "asked": share.written,
                    "rows": different.get(name, 0),
                    **counted.get(name, nothing),
                }
                for name, share in data.stages[plan.name].mixture.items()
                if name in loaded
            },
        }
    mixed = [name for name in loaded if any(name in s["mixture"] for s in stages.values())]
    return {
        "stages": stages,
        "sources": {
            name: {
                "path": data.corpus.sources[name].path,
                **loaded[name].report.to_json(),
                "held_out": loaded[name].val_rows,
                "lengths": sorted(num_tokens[name][loaded[name].trainable].tolist()),
            }
            for name in mixed
        },
        "samples": [
            sample for module in modules for sample in _samples(data, module.plan, num_samples)
        ],
    }


def _packed(data: StagedDataModule, plan: StagePlan) -> dict[str, Any]:
    if not data.packing:
        return {}
    sequences = [refs for window in plan.windows for refs in window]
    tokens = sum(bin_length(data.corpus, refs) for refs in sequences)
    fill = tokens / (len(sequences) * data.corpus.max_length)
    return {"sequences": len(sequences), "fill": fill}


def _guarded(data: StagedDataModule, plan: StagePlan) -> dict[str, Any]:
    if data.guard is None or data.guard.stage != plan.name:
        return {}
    sources = data.guard.sources(data.evaluation)
    return {"guarded": {source: list(map(str, data.guard.shares)) for source in sources}}


def _different_rows(plan: StagePlan) -> dict[str, int]:
    rows = set(plan.rows())
    return {name: sum(ref.source == name for ref in rows) for name in {ref.source for ref in rows}}


def _samples(data: StagedDataModule, plan: StagePlan, count: int) -> Iterable[dict[str, Any]]:
    """Yield the first rows of every source, in training order."""
    taken: dict[str, list[RowRef]] = {}
    for ref in (ref for window in plan.passes[0] for refs in window for ref in refs):
        taken.setdefault(ref.source, [])
        if len(taken[ref.source]) < count:
            taken[ref.source].append(ref)
    for name, refs in taken.items():
        source = data.corpus.loaded[name]
        for ref in refs:
            yield {
                "stage": plan.name,
                "source": name,
                "sample_id": source.sample_ids[ref.index],
                "pieces": pieces(source.rows[ref.index], data.corpus.renderer),
            }


def pieces(row: TokenizedRow, renderer: Renderer) -> list[dict[str, Any]]:
    """Split a row where tokens change kind: ``text``, ``tokens``, ``trained``, ``special``."""
    tokenizer = renderer.tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    # The first token has no predecessor, so it is never trained.
    trained = [index > 0 and label != IGNORED for index, label in enumerate(row.labels)]
    kinds = [(t, token in special) for t, token in zip(trained, row.input_ids, strict=True)]
    found = []
    for (is_trained, is_special), group in groupby(range(len(kinds)), key=kinds.__getitem__):
        ids = [int(row.input_ids[index]) for index in group]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append(
            {"text": text, "tokens": len(ids), "trained": is_trained, "special": is_special}
        )
    return found


def inspection_text(found: Mapping[str, Any], *, color: bool) -> str:
    """Return an inspection as text.

    Args:
        found: The result of ``inspection``.
        color: Show trained tokens green and special ones dim, with ANSI codes; otherwise put
            trained text between ⟦ and ⟧.
    """
    blocks = [_stage_table(found["stages"]), _source_table(found["sources"])]
    blocks += [_histogram(name, source["lengths"]) for name, source in found["sources"].items()]
    blocks += [_sample(sample, color) for sample in found["samples"]]
    return "\n\n".join(blocks)


def _stage_table(stages: Mapping[str, Any]) -> str:
    header = [
        "stage",
        "source",
        "asked",
        "rows",
        "samples",
        "%",
        "tokens",
        "%",
        "trained",
        "%",
        "steps",
    ]
    rows = []
    for name, stage in stages.items():
        counts = ("samples", "tokens", "target_tokens")
        mixture = stage["mixture"].values()
        total = {key: sum(part[key] for part in mixture) for key in counts}
        for index, (source, part) in enumerate(stage["mixture"].items()):
            shares = [
                cell
                for key in counts
                for cell in (f"{part[key]:,}", percent(part[key] / total[key]))
            ]
            rows.append(
                [
                    "" if index else name,
                    source,
                    _share(part["asked"]),
                    f"{part['rows']:,}",
                    *shares,
                    "",
                ]
            )
        all_rows = f"{sum(part['rows'] for part in mixture):,}"
        totals = [cell for key in counts for cell in (f"{total[key]:,}", "")]
        rows.append(["", "all", "", all_rows, *totals, f"{stage['steps']:,}"])
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
    return "\n".join([format_table(header, rows), *packed, *guarded])


def _share(requested: Any) -> str:
    if isinstance(requested, Mapping):
        return " ".join(f"{amount:,} {unit}" for unit, amount in requested.items())
    return str(requested)


def _source_table(sources: Mapping[str, Any]) -> str:
    header = ["source", "rows", "left out", "held out", "shortest", "median", "95 %", "longest"]
    rows, reasons = [], []
    for name, source in sources.items():
        lengths = source["lengths"]
        left_out = sum(source["dropped"].values())
        spread = (lengths[0], median(lengths), lengths[int(0.95 * (len(lengths) - 1))], lengths[-1])
        counts = (source["rows"], left_out, source["held_out"])
        rows.append(
            [name, *(f"{value:,}" for value in counts), *(f"{value:,.0f}" for value in spread)]
        )
        reasons += [f"{name}: {line}" for line in _reasons(source)]
    return "\n".join([format_table(header, rows), *reasons])


def _reasons(source: Mapping[str, Any]) -> list[str]:
    """Return a line per reason for leaving out or repairing rows, each with an example."""
    file = Path(source["path"]).name

    def example(place: str) -> str:
        return f"e.g. {place} of {file}"

    counted = [("left out", source["dropped"]), ("repaired", source["repaired"])]
    lines = [
        f"{count:,} {what}: {visible(reason)} ({example(source['examples'][reason])})"
        for what, counts in counted
        for reason, count in counts.items()
    ]
    if source["duplicates"]:
        lines.append(f"{source['duplicates']:,} rows repeat another row")
    if unused := unused_line(source["unused_keys"]):
        lines.append(visible(unused))
    for benchmark, count in source["contaminated"].items():
        lines.append(f"{count:,} rows contain an item of {benchmark}, or 13 words of one:")
        found = (row for row in source["contaminated_rows"] if f": {benchmark} " in row)
        lines += [f"  {row}" for row in islice(found, _MAX_CONTAMINATED)]
    return lines


def _histogram(name: str, lengths: Sequence[int]) -> str:
    """Return a histogram of row lengths in tokens."""
    first = lengths[0]
    width = (lengths[-1] - first) // _NUM_BINS + 1
    counts = Counter((length - first) // width for length in lengths)
    lines = [f"{name}: rows by length in tokens"]
    for index in range(max(counts) + 1):
        start = first + index * width
        label = f"{start}-{start + width - 1}" if width > 1 else f"{start}"
        bar = "█" * round(_BAR_WIDTH * counts[index] / max(counts.values()))
        lines.append(f"{label:>12}  {bar or '▏' * bool(counts[index])} {counts[index]:,}")
    return "\n".join(lines)


def _sample(sample: Mapping[str, Any], color: bool) -> str:
    parts = sample["pieces"]
    tokens = sum(part["tokens"] for part in parts)
    trained = sum(part["tokens"] for part in parts if part["trained"])
    head = (
        f"{sample['stage']}, {sample['source']} {sample['sample_id'][:8]}: "
        f"{tokens:,} tokens, {trained:,} trained"
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
