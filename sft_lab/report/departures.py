"""Where a study's protocol departs from the paper's, read from the records of its runs.

Source: Dong et al. (2024), arXiv 2310.05492, sections 3 and 4, and appendix C. The paper gives
neither HumanEval's prompt nor how answers are extracted; GSM8K's extraction is that of its authors'
earlier study, arXiv 2308.01825.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sft_lab.analysis.abilities import Ability
from sft_lab.report.page import Table
from sft_lab.runs.results import RunResult
from sft_lab.terminal import counted

_BASE = re.compile(r"(?:^|/)llama-(?:7|13|30|33)b(?:-hf)?$", re.IGNORECASE)  # 30b is named so
_SOURCES = {
    "math": ("GSM8K RFT", 110_142),
    "code": ("Code Alpaca", 20_022),
    "general": ("ShareGPT", 86_060),
}
_BENCHMARKS = {
    "math": ("gsm8k", "GSM8K, its 1,319 test items, the number after ####"),
    "code": ("humaneval", "HumanEval, its 164 items"),
    "general": ("mt_bench", "MT-Bench, its 80 items, GPT-4 as judge, the mean of 3 experiments"),
}
_ROWS_TOLERANCE = 0.05  # of a source's size: rows that are dropped, and the paper's two counts
_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Departure:
    """A part of the protocol in which a study differs from the paper: both values as text."""

    what: str
    paper: str
    here: str


def departures_of(runs: Sequence[RunResult], abilities: Sequence[Ability]) -> list[Departure]:
    """Return where the protocol of finished runs departs from the paper's.

    Protocols are equal if nothing is returned. A value that is not recorded counts as another one.

    Args:
        runs: The study's runs.
        abilities: Its abilities.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        for departure in [*_training(run), *_data(run), *_measured(run, abilities)]:
            found.setdefault((departure.what, departure.paper), {})[departure.here] = None
    return [Departure(*names, "; ".join(here)) for names, here in found.items()]


def differs(departures: Sequence[Departure]) -> str:
    """Return departures as the line above published figures."""
    named = "; ".join(f"{d.what}: {d.here} (the paper: {d.paper})" for d in departures)
    return f"The paper's figures were measured under another protocol than this study's. {named}."


def summary(departures: Sequence[Departure]) -> str:
    """Return which parts differ, in a sentence that points to the table of them."""
    parts = ", ".join(dict.fromkeys(d.what for d in departures))
    return (
        "The paper's findings were measured under another protocol than this study's. It differs "
        f"in {parts}; the last section says how."
    )


def departures_table(departures: Sequence[Departure]) -> Table:
    """Return departures as a table; it has no rows if protocols are equal."""
    return Table(
        "Where the protocol of this study departs from the paper's. The paper's figures are no "
        "reference for scores measured under another one.",
        ("part", "the paper", "here"),
        [[d.what, d.paper, d.here] for d in departures],
    )


def _training(run: RunResult) -> Iterator[Departure]:
    if not _BASE.search(run.base):
        yield Departure("base", "LLaMA-1 of 7B, 13B or 33B", run.base or _UNKNOWN)
    settings = run.settings
    rank = settings.get("model.lora.r")
    if rank is not None or "model.lora" not in settings:
        quantized = settings.get("model.quantization")
        here = _UNKNOWN if rank is None else f"LoRA of rank {rank} on a base in {quantized}"
        yield Departure("training", "all weights", here)
    for what, ending, paper in (("learning rate", "lr", 2e-5), ("epochs", "epochs", 3)):
        key = re.compile(rf"data\.stages\..+\.{ending}")
        given = dict.fromkeys(value for name, value in settings.items() if key.fullmatch(name))
        if [_number(value) for value in given] != [paper]:
            yield Departure(what, f"{paper:g}", " and ".join(given) or _UNKNOWN)
    for what, name, papers in (
        ("batch size", "data.batch_size", ("128", "16")),
        ("chat template", "corpus.template", ("vicuna_v1.1",)),
    ):
        if settings.get(name) not in papers:
            yield Departure(what, " or ".join(papers), settings.get(name, _UNKNOWN))


def _data(run: RunResult) -> Iterator[Departure]:
    for name, (title, rows) in _SOURCES.items():
        source = run.record.sources.get(name)
        if source is None or abs(source.rows - rows) > _ROWS_TOLERANCE * rows:
            here = _UNKNOWN if source is None else f"{counted(source.rows, 'row')} of {source.path}"
            yield Departure(f"{name} data", f"{title}, {rows:,} rows", here)


def _measured(run: RunResult, abilities: Sequence[Ability]) -> Iterator[Departure]:
    for ability in abilities:
        name, paper = _BENCHMARKS.get(ability.source or "", ("", "no such ability"))
        measured = run.benchmarks.get(ability.benchmark)
        if measured is None:
            yield Departure(f"{ability.name} benchmark", paper, _UNKNOWN)
            continue
        protocol = measured.protocol
        is_equal = {
            "gsm8k": ability.score_name == "strict" and measured.items == 1319,
            "humaneval": ability.benchmark == "humaneval" and measured.items == 164,
            "mt_bench": ability.score_name == "mean"
            and measured.items == 80
            and "'model': 'gpt-4" in protocol.get("judge", "")
            and protocol.get("num_judgements") == 3,
        }
        if name != ability.benchmark or not is_equal[name]:
            judged = protocol.get("num_judgements")
            several = f", judgements of an answer: {judged}" if judged else ""
            split = f", {measured.reported} of them reported" if measured.split else ""
            here = f"{ability.key}, {counted(measured.items, 'item')}{split}{several}"
            yield Departure(f"{ability.name} benchmark", paper, here)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
