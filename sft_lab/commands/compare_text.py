"""A comparison for people: abilities by boundary, tests, and items forgotten and gained."""

from collections.abc import Callable, Sequence
from math import isfinite

from sft_lab.analysis.abilities import Ability, abilities_in
from sft_lab.analysis.comparison import RunComparison
from sft_lab.analysis.conclusion import forgetting_text
from sft_lab.analysis.family import LEVEL
from sft_lab.analysis.forgetting import (
    ChangedItem,
    can_forget,
    change_of,
    changed_items,
    form_of,
)
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Comparison, Side, boundary_of
from sft_lab.analysis.protocols import mismatch_line
from sft_lab.metrics.paired import Difference
from sft_lab.metrics.score import Score
from sft_lab.terminal import columns, counted, fitted_table, format_table, visible, wrapped

_OTHER_PROTOCOL = " !"
_ANSWER_WIDTH = 44


def report(compared: RunComparison, num_items: int, color: bool) -> str:
    """Return a comparison as text, scores in percent if they are in [0, 1].

    Args:
        compared: The comparison.
        num_items: Most forgotten, and most gained items to show of a run's benchmark.
        color: Whether lines of a difference that is shown are bold, for a terminal.
    """
    parts = [wrapped(_scope(compared)), _abilities(compared)]
    if compared.differences:
        name = compared.groups[compared.reference].label
        rows = [
            _test_row(test, compared.is_flagged(compared.groups[index], test.ability))
            for index, test in compared.differences
        ]
        title = f"Against {name!r}, both at their end, on the same items:"
        parts.append(_tests(title, rows, [test for _, test in compared.differences], color))
    # With itself, a run was measured under one protocol.
    drops = [drop for _, drop in compared.forgetting]
    rows = [_test_row(drop.comparison, False, drop.best.stage) for drop in drops]
    title = "At the end against the best earlier boundary:"
    parts.append(_tests(title, rows, [drop.comparison for drop in drops], color))
    parts.append("\n".join(map(wrapped, _reading(compared))))
    parts += _items(compared, num_items)
    names = {run_id: run.name for run_id, run in compared.runs.items()}
    first = next(iter(compared.groups[compared.reference].runs.values()))
    notes = []
    for mismatch in compared.mismatches:
        mark = f"{_OTHER_PROTOCOL.strip()} other protocol" if mismatch.is_protocol else "note"
        notes.append(f"{mark}: {mismatch_line(mismatch, names, first.name)}")
    if notes:
        parts.append("\n".join(wrapped(visible(note)) for note in notes))
    if conclusions := _conclusions(compared):  # last, where a terminal shows them
        parts.append("\n".join(map(wrapped, conclusions)))
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


def _conclusions(compared: RunComparison) -> list[str]:
    """Return what each run or method has forgotten, a line each."""
    found: dict[int, list[str]] = {}
    for index, drop in compared.forgetting:
        ability = drop.comparison.ability
        if can_forget(compared.groups[index], ability):
            parts = found.setdefault(index, [])
            parts.append(forgetting_text(ability.name, drop.comparison, first=not parts))
    return [visible(f"{_title(compared.groups[n])}: {'; '.join(p)}.") for n, p in found.items()]


def _reading(compared: RunComparison) -> list[str]:
    """Return how to read the tests, a sentence or two on a line."""
    tests = counted(compared.measured.family.size(), "test")
    return [
        f"Differences in parentheses may be chance: p, corrected for the {tests} of this "
        f"comparison (Holm), is {100 * LEVEL:g} % or more.",
        f"No effect: a difference of {100 * compared.measured.margin:g} % of the scale or more is "
        "ruled out by two one-sided tests, corrected likewise. Not tested: no run was shown above "
        "guessing and apart from its base.",
        "The p of a best boundary counts the boundaries that it was chosen from.",
    ]


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
    header = ["run", "after", "step", *header]
    forms = [n for n, name in enumerate(header) if name == "form"]
    table = fitted_table(header, rows[:-1], keys=3, joined=forms)
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
    against = ["against"] if len(rows[0]) > len(_TEST_HEADER) else []
    header = [*_TEST_HEADER[:4], *against, *_TEST_HEADER[4:]]
    bold = [index for index, test in enumerate(tests) if color and test.shown]
    return f"{wrapped(visible(title))}\n{fitted_table(header, rows, keys=2, bold=bold)}"


_TEST_HEADER = ("run", "ability", "difference", "conclusion", "items", "of", "p", "Holm p")
"""The columns of a table of tests, in the order in which a reader needs them."""


def _test_row(test: Comparison, is_flagged: bool, *against: str) -> list[str]:
    first = [test.after, test.ability.name]
    difference = test.difference
    if difference is None:
        return [*first, "-", f"not tested: {test.why_not}", *against, "", "", "", ""]
    value = _interval(difference, test.ability, signed=True)
    return [
        *first,
        (value if test.shown else f"({value})") + (_OTHER_PROTOCOL if is_flagged else ""),
        str(test.conclusion),
        *against,
        f"+{len(test.gained)} -{len(test.lost)}" if test.gained or test.lost else "",
        str(difference.n),
        _p(difference.p),
        _p(test.p_holm),
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
            parts.append(f"{wrapped(visible(title))}\n{_answers(shown)}")
    return parts


def _answers(items: Sequence[ChangedItem]) -> str:
    """Return items with their answers: a table, or lines below each other if that is too wide."""
    texts = [[item.prompt, item.before, item.after] for item in items]
    shorts = [[_short(text, _ANSWER_WIDTH) for text in of_item] for of_item in texts]
    rows = [[item.id, item.kind, *short] for item, short in zip(items, shorts, strict=True)]
    table = format_table(["item", "", "question", "answer before", "answer at the end"], rows)
    room = columns()
    if room is None or max(map(len, table.splitlines())) <= room:
        return table
    names = ("question", "before", "at the end")
    lines = []
    for item, of_item in zip(items, texts, strict=True):
        lines.append(f"{item.id}  {item.kind}")
        lines += [f"  {n:<10}  {_short(t, room - 14)}" for n, t in zip(names, of_item, strict=True)]
    return visible("\n".join(lines))


def _short(text: str, width: int) -> str:
    """Return a text on one line, both ends of it if it is long: answers often end with them."""
    line = " ".join(text.split())
    half = width // 2 - 2
    return line if len(line) <= width else f"{line[:half]} .. {line[-half:]}"


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
