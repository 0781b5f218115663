"""A comparison for people: abilities by boundary, tests, and items forgotten and regained."""

from collections.abc import Sequence
from math import isfinite

from sft_lab.analysis.arms import Arm
from sft_lab.analysis.changed_items import ChangedItem, changed_items
from sft_lab.analysis.comparison import Change, Comparison, boundary_name, score_at
from sft_lab.analysis.protocols import mismatch_line
from sft_lab.commands.compare import run_names
from sft_lab.metrics.paired import Difference
from sft_lab.metrics.score import Score
from sft_lab.metrics.seeds import over_seeds
from sft_lab.terminal import format_table, percent

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_OTHER_PROTOCOL = " !"
_ANSWER_WIDTH = 44


def report(compared: Comparison, num_items: int, color: bool) -> str:
    """Return a comparison as text, scores in percent if they are in [0, 1].

    Args:
        compared: The comparison.
        num_items: Most forgotten, and most regained items to show of a run's benchmark.
        color: Whether lines of a difference that is shown are bold, for a terminal.
    """
    parts = [_abilities(compared)]
    reference = compared.arms[compared.reference].name
    tests = sum(c.difference is not None for c in (*compared.differences, *compared.forgetting))
    if compared.differences:
        title = f"Against {reference!r}, both at their end, on the same items:"
        parts.append(_tests(compared, compared.differences, title, color))
    title = "At the end against the best boundary before it:"
    parts.append(_tests(compared, compared.forgetting, title, color))
    parts.append(
        f"Differences in parentheses may be chance: p, corrected for the {tests} tests of this "
        "comparison (Holm), is 5 % or more.\n"
        "The p of a best boundary counts the boundaries that it was chosen from."
    )
    parts += _items(compared, num_items)
    names, first = run_names(compared.arms), compared.arms[compared.reference].runs[0].result
    notes = []
    for mismatch in compared.mismatches:
        mark = f"{_OTHER_PROTOCOL.strip()} other protocol" if mismatch.is_protocol else "note"
        notes.append(f"{mark}: {mismatch_line(mismatch, names, first.name)}")
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _abilities(compared: Comparison) -> str:
    keys = sorted({key for arm in compared.arms for key in arm.keys.values()})
    rows: list[list[str]] = []
    for arm in compared.arms:
        for boundary in range(arm.num_boundaries):
            cells = [_cell(compared, arm, key, boundary) for key in keys]
            steps = sorted({run.result.boundaries[boundary].step for run in arm.runs})
            step = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"
            rows.append([_title(arm), boundary_name(arm, boundary), step, *cells])
        rows.append(["", "retention at the end", "", *(_retention(arm, key) for key in keys)])
        rows.append([""] * (3 + len(keys)))
    return format_table(["run", "after", "step", *keys], rows[:-1])


def _title(arm: Arm) -> str:
    statuses = sorted({run.result.status for run in arm.runs} - {"FINISHED"})
    seeds = [f"{len(arm.runs)} seeds"] if len(arm.runs) > 1 else []
    notes = ", ".join([*seeds, *statuses])
    return f"{arm.name} ({notes})" if notes else arm.name


def _cell(compared: Comparison, arm: Arm, key: str, boundary: int) -> str:
    benchmark = key.partition("/")[0]
    score = score_at(arm, benchmark, boundary) if arm.keys.get(benchmark) == key else None
    if score is None:
        return "-"
    cell = _interval(score, _in_percent(arm, benchmark), signed=False)
    return cell + (_OTHER_PROTOCOL if _is_flagged(compared, arm, benchmark) else "")


def _retention(arm: Arm, key: str) -> str:
    found = [run.result.final.get(f"retention/{key}") for run in arm.runs]
    known = [value for value in found if value is not None]
    if not known or len(known) < len(found) or not arm.is_finished:
        return ""
    mean = over_seeds(known)
    if mean.low is None or mean.high is None:
        return f"{mean.value:.2f}"
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def _tests(compared: Comparison, changes: Sequence[Change], title: str, color: bool) -> str:
    rows, shown = [], []
    for change in changes:
        arm = compared.arms[change.arm]
        # With itself, a run was measured under one protocol.
        across = change in compared.differences and _is_flagged(compared, arm, change.benchmark)
        difference, verdict = change.difference, change.verdict
        if difference is None or change.p_holm is None:
            cells = ["-", "", "", "", "", f"not tested: {change.left_out}"]
        else:
            value = _interval(difference, _in_percent(arm, change.benchmark), signed=True)
            has_items = change.gained or change.lost
            items = f"+{len(change.gained)} -{len(change.lost)}" if has_items else ""
            cells = [
                (f"({value})" if verdict == "no difference shown" else value)
                + (_OTHER_PROTOCOL if across else ""),
                items,
                str(difference.n),
                _p(difference.p),
                _p(change.p_holm),
                str(verdict),
            ]
        rows.append([arm.name, change.key, change.before, *cells])
        shown.append(verdict in ("higher", "lower"))
    header = ["run", "score", "against", "difference", "items", "of", "p", "Holm's p", "verdict"]
    head, *lines = format_table(header, rows).splitlines()
    if color:
        pairs = zip(lines, shown, strict=True)
        lines = [f"{_BOLD}{line}{_PLAIN}" if is_shown else line for line, is_shown in pairs]
    return "\n".join([title, head, *lines])


def _items(compared: Comparison, num_items: int) -> list[str]:
    parts = []
    for run in {run.result.run_id: run for arm in compared.arms for run in arm.runs}.values():
        for benchmark, of_step in run.outcomes.items():
            found = changed_items(run.result, benchmark, of_step)
            forgotten = [item for item in found if item.kind == "forgotten"]
            regained = [item for item in found if item.kind == "regained"]
            shown = [*forgotten[:num_items], *regained[:num_items]]
            if not shown:
                continue
            counts = f"{len(forgotten)} items forgotten, {len(regained)} regained"
            title = f"{run.result.name}, {benchmark}: {counts}"
            header = ["item", "", "asked", "at step", "answer there", "answer at the end"]
            rows = [_item_row(item) for item in shown]
            parts.append(f"{title}\n{format_table(header, rows)}")
    return parts


def _item_row(item: ChangedItem) -> list[str]:
    texts = [_short(text) for text in (item.prompt, item.before, item.after)]
    return [item.id, item.kind, texts[0], str(item.before_step), *texts[1:]]


def _short(text: str) -> str:
    """Return a text on one line, both ends of it where it is long: answers often end with them."""
    line = " ".join(text.split())
    half = _ANSWER_WIDTH // 2 - 2
    return line if len(line) <= _ANSWER_WIDTH else f"{line[:half]} .. {line[-half:]}"


def _is_flagged(compared: Comparison, arm: Arm, benchmark: str) -> bool:
    ids = {run.result.run_id for run in arm.runs}
    return any(
        m.is_protocol and m.benchmark == benchmark and m.run_id in ids for m in compared.mismatches
    )


def _in_percent(arm: Arm, benchmark: str) -> bool:
    return arm.runs[0].result.benchmarks[benchmark].is_share


def _interval(found: Score | Difference, in_percent: bool, signed: bool) -> str:
    value, low, high = (
        _number(number, in_percent, signed) for number in (found.value, found.low, found.high)
    )
    return f"{value} [{low}, {high}]"


def _number(number: float, in_percent: bool, signed: bool) -> str:
    if not isfinite(number):
        return "-"
    text = percent(number) if in_percent else f"{number:.2f}"
    return f"+{text}" if signed and number > 0 else text


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
