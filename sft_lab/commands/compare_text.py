"""A comparison for people: abilities by boundary, tests, and items forgotten and gained."""

from collections.abc import Callable, Sequence
from math import isfinite

from sft_lab.analysis.abilities import Ability, abilities_in
from sft_lab.analysis.comparison import RunComparison
from sft_lab.analysis.family import LEVEL
from sft_lab.analysis.forgetting import ChangedItem, change_of, changed_items, form_of
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Comparison, Side, boundary_of
from sft_lab.analysis.protocols import mismatch_line
from sft_lab.metrics.paired import Difference
from sft_lab.metrics.score import Score
from sft_lab.terminal import counted, fitted_table, format_table, visible, wrapped

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_OTHER_PROTOCOL = " !"
_ANSWER_WIDTH = 44


def report(compared: RunComparison, num_items: int, color: bool) -> str:
    """Return a comparison as text, scores in percent if they are in [0, 1].

    Args:
        compared: The comparison.
        num_items: Most forgotten, and most gained items to show of a run's benchmark.
        color: Whether lines of a difference that is shown are bold, for a terminal.
    """
    parts = [_scope(compared), _abilities(compared)]
    if compared.differences:
        name = compared.groups[compared.reference].label
        rows = [
            _test_row(test, test.before, compared.is_flagged(compared.groups[index], test.ability))
            for index, test in compared.differences
        ]
        title = f"Against {name!r}, both at their end, on the same items:"
        parts.append(_tests(title, rows, [test for _, test in compared.differences], color))
    # With itself, a run was measured under one protocol.
    drops = [drop for _, drop in compared.forgetting]
    rows = [_test_row(drop.comparison, drop.best.stage, False) for drop in drops]
    title = "At the end against the best earlier boundary:"
    parts.append(_tests(title, rows, [drop.comparison for drop in drops], color))
    family = compared.measured.family
    parts.append(
        "Differences in parentheses may be chance: p, corrected for the "
        f"{counted(family.size(), 'test')} of this comparison (Holm), is {100 * LEVEL:g} % or "
        "more.\n"
        f"No effect: a difference of {100 * compared.measured.margin:g} % of the scale or more is "
        "ruled out by two one-sided tests, corrected likewise. Not tested: no run was shown above "
        "guessing and apart from its base.\n"
        "The p of a best boundary counts the boundaries that it was chosen from."
    )
    parts += _items(compared, num_items)
    names = {run_id: run.name for run_id, run in compared.runs.items()}
    first = next(iter(compared.groups[compared.reference].runs.values()))
    notes = []
    for mismatch in compared.mismatches:
        mark = f"{_OTHER_PROTOCOL.strip()} other protocol" if mismatch.is_protocol else "note"
        notes.append(f"{mark}: {mismatch_line(mismatch, names, first.name)}")
    if notes:
        parts.append(visible("\n".join(notes)))
    return "\n\n".join(parts)


def _scope(compared: RunComparison) -> str:
    """Return what the comparison speaks of: single runs say nothing of other seeds."""
    seeds = [len(group.runs) for group in compared.groups]
    if len(seeds) > 1 and min(seeds) == 1:
        runs = "these two runs" if len(seeds) == 2 else "these runs"
        return (
            f"One seed only: this speaks of {runs}, on other items, and not of the methods; "
            "another seed may differ. --over_seeds compares methods."
        )
    if min(seeds) == 1:
        return "One run: its changes are shown for other items, not for other seeds."
    return f"{min(seeds)} seeds or more on each side: this speaks of other seeds and other items."


def _abilities(compared: RunComparison) -> str:
    keys = sorted({ability.key for group in compared.groups for ability in group.abilities})
    formed = {
        ability.key
        for group in compared.groups
        for ability in group.abilities
        if form_of(boundary_of(group, 0), ability)
    }
    none = {key: [""] if key in formed else [] for key in keys}
    rows: list[list[str]] = []
    for group in compared.groups:
        by_key = {ability.key: ability for ability in group.abilities}
        for boundary in range(group.num_boundaries):
            side = boundary_of(group, boundary)
            cells = []
            for key in keys:
                cells.append(_cell(compared, group, by_key.get(key), boundary))
                cells += [_form(side, by_key.get(key))] if key in formed else []
            steps = sorted({point.step for _, point in side.points.values()})
            step = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"
            rows.append([_title(group), side.stage, step, *cells])
        for name, change, show in _AT_THE_END:
            values = [_change(group, by_key.get(key), change, show) for key in keys]
            if change == "retention" or any(values):
                cells = [v for key, x in zip(keys, values, strict=True) for v in [x, *none[key]]]
                rows.append(["", name, "", *cells])
        rows.append([""] * (3 + len(keys) + len(formed)))
    names = {a.key: a.name for group in compared.groups for a in group.abilities}
    header = [n for key in keys for n in (names[key], *(["form"] if key in formed else []))]
    table = fitted_table(["run", "after", "step", *header], rows[:-1], keys=3)
    scores = ", ".join(f"{names[key]} is {key}" for key in keys)
    form = "; form: share of answers in the asked form, %" if formed else ""
    return f"{table}\n{wrapped(f'Scores in % or as rated [95 % interval]: {scores}{form}.')}"


_AT_THE_END = (
    ("retention at the end", "retention", "{:.2f}".format),
    ("forgetting with form", "form_forgetting", lambda value: f"{100 * value:.1f}"),
)


def _title(group: RunGroup) -> str:
    statuses = sorted({run.status for run in group.runs.values()} - {"FINISHED"})
    seeds = [f"{len(group.runs)} seeds"] if len(group.runs) > 1 else []
    notes = ", ".join([*seeds, *statuses])
    return f"{group.label} ({notes})" if notes else group.label


def _cell(compared: RunComparison, group: RunGroup, ability: Ability | None, boundary: int) -> str:
    score = compared.score(group, ability, boundary) if ability else None
    if ability is None or score is None:
        return "-"
    flag = _OTHER_PROTOCOL if compared.is_flagged(group, ability) else ""
    return _interval(score, ability, signed=False) + flag


def _form(side: Side, ability: Ability | None) -> str:
    found = form_of(side, ability) if ability else None
    return f"{100 * found.value:.1f}" if found else "-"


def _change(
    group: RunGroup, ability: Ability | None, name: str, show: Callable[[float], str]
) -> str:
    found = change_of(group, ability, name) if ability else None
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return show(found.value)
    return f"{show(found.value)} [{show(found.low)}, {show(found.high)}]"


def _tests(
    title: str, rows: Sequence[Sequence[str]], tests: Sequence[Comparison], color: bool
) -> str:
    header = ["run", "ability", "against", "difference", "items", "of", "p", "Holm p", "conclusion"]
    head, *lines = format_table(header, rows).splitlines()
    if color:
        pairs = zip(lines, tests, strict=True)
        lines = [f"{_BOLD}{line}{_PLAIN}" if test.shown else line for line, test in pairs]
    return "\n".join([visible(title), head, *lines])


def _test_row(test: Comparison, against: str, is_flagged: bool) -> list[str]:
    first = [test.after, test.ability.name, against]
    difference = test.difference
    if difference is None:
        return [*first, "-", "", "", "", "", f"not tested: {test.why_not}"]
    value = _interval(difference, test.ability, signed=True)
    return [
        *first,
        (value if test.shown else f"({value})") + (_OTHER_PROTOCOL if is_flagged else ""),
        f"+{len(test.gained)} -{len(test.lost)}" if test.gained or test.lost else "",
        str(difference.n),
        _p(difference.p),
        _p(test.p_holm),
        str(test.conclusion),
    ]


def _items(compared: RunComparison, num_items: int) -> list[str]:
    parts = []
    for run in compared.runs.values():
        for ability in abilities_in(run):
            found = changed_items(run, ability, compared.measured)
            forgotten = [item for item in found if item.kind == "forgotten"]
            gained = [item for item in found if item.kind == "gained"]
            shown = [*forgotten[:num_items], *gained[:num_items]]
            if not shown:
                continue
            counts = f"{counted(len(forgotten), 'item')} forgotten, {len(gained)} gained"
            title = f"{run.name}, {ability.benchmark}: {counts} since {shown[0].stage}"
            header = ["item", "", "question", "answer before", "answer at the end"]
            rows = [_item_row(item) for item in shown]
            parts.append(f"{visible(title)}\n{format_table(header, rows)}")
    return parts


def _item_row(item: ChangedItem) -> list[str]:
    return [item.id, item.kind, *(_short(t) for t in (item.prompt, item.before, item.after))]


def _short(text: str) -> str:
    """Return a text on one line, both ends of it if it is long: answers often end with them."""
    line = " ".join(text.split())
    half = _ANSWER_WIDTH // 2 - 2
    return line if len(line) <= _ANSWER_WIDTH else f"{line[:half]} .. {line[-half:]}"


def _interval(found: Score | Difference, ability: Ability, signed: bool) -> str:
    value, low, high = (
        _number(number, ability, signed) for number in (found.value, found.low, found.high)
    )
    return f"{value} [{low}, {high}]"


def _number(number: float, ability: Ability, signed: bool) -> str:
    if not isfinite(number):
        return "-"
    text = ability.text(number)
    return f"+{text}" if signed and number > 0 else text


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
