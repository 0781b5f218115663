"""Abilities over training: curves with stage boundaries, and a heat map of the boundaries."""

from collections.abc import Sequence

from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.forgetting import form_at
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Measurements, boundary_of
from sft_lab.report.curves import dots, finish
from sft_lab.report.drawing import DASHES, GRID, HEAT, INK, MARKERS, MUTED, PAPER, SERIES, Drawing
from sft_lab.report.page import Panel
from sft_lab.runs.results import RunResult


def timeline(
    name: str, group: RunGroup, abilities: Sequence[Ability], scale: tuple[float, float]
) -> Panel | None:
    """Draw all abilities of one scale over the optimizer steps of a group's runs.

    Args:
        name: Name of the drawing.
        group: Runs that differ by their seeds, drawn as dots; the line is their mean.
        abilities: The study's abilities, which decide colours and markers.
        scale: The scale of the abilities to draw.

    Returns:
        The panel, or None if nothing was measured twice.
    """
    runs = list(group.runs.values())
    drawing = Drawing(height=2.9)
    axes, words = drawing.axes, []
    for number, ability in enumerate(abilities):
        if ability.scale != scale:
            continue
        by_step: dict[int, list[float]] = {}
        for run in runs:
            measured = [p for p in run.points if ability.key in p.scores]
            partial = [p for p in measured if ability.benchmark in p.partial]
            axes.plot(
                [p.step for p in partial],
                [ability.shown(p.scores[ability.key].value) for p in partial],
                color=SERIES[number % 6],
                linestyle="none",
                marker=MARKERS[number % 6],
                markerfacecolor="none",
            )
            points = [p for p in measured if p not in partial]
            values = [ability.shown(p.scores[ability.key].value) for p in points]
            if len(runs) > 1:
                dots(drawing, [p.step for p in points], values, SERIES[number % 6])
            for point, value in zip(points, values, strict=True):
                by_step.setdefault(point.step, []).append(value)
        # A mean over fewer seeds than all would jump where one of them has no evaluation.
        means = {s: sum(v) / len(v) for s, v in sorted(by_step.items()) if len(v) == len(runs)}
        if len(means) < 2:
            continue
        axes.plot(
            list(means),
            list(means.values()),
            color=SERIES[number % 6],
            linestyle=DASHES[number % 6],
            marker=MARKERS[number % 6],
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            label=ability.name,
        )
        forms = _forms(runs, ability)
        if len(forms) > 1:
            xs, ys = list(forms), list(forms.values())
            axes.plot(xs, ys, color=SERIES[number % 6], linestyle=(0, (1, 2)), linewidth=1.0)
        first, *_, last = means.values()
        words.append(
            f"{ability.name} from {first:.1f} to {last:.1f}, at most {max(means.values()):.1f}"
        )
    if not words:
        return None
    drawn = [ability for ability in abilities if ability.scale == scale]
    finish(drawing, drawn[0], group.label)
    axes.set_ylabel(f"score, {drawn[0].unit}")
    axes.set_xlabel("optimizer steps")
    _mark_stages(drawing, group)
    drawing.legend([ability.name for ability in drawn])
    alt = f"{group.label}, {drawn[0].unit}, over training. {'; '.join(words)}."
    return drawing.panel(name, alt)


def _forms(runs: Sequence[RunResult], ability: Ability) -> dict[int, float]:
    """Return the mean share of answers in the asked form, in percent, by step."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for point in run.points:
            form = form_at(run, ability, point)
            if form is not None and ability.is_share:
                by_step.setdefault(point.step, []).append(100 * form)
    return {s: sum(v) / len(v) for s, v in sorted(by_step.items()) if len(v) == len(runs)}


def _mark_stages(drawing: Drawing, group: RunGroup) -> None:
    axes = drawing.axes
    run = next(iter(group.runs.values()))
    total = sum(run.stages.values())
    axes.set_xlim(-0.02 * total, 1.02 * total)
    axes.set_title(group.label, loc="left", fontweight="bold", fontsize=10.5, pad=18)
    start = 0
    for name, steps in run.stages.items():
        if start:
            axes.axvline(start, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        fits = steps / total > 0.017 * len(name)
        axes.text(
            start + steps / 2,
            1.02,
            name
            if fits
            else name[: max(int(steps / total / 0.017) - 1, 1)] + "\N{HORIZONTAL ELLIPSIS}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=MUTED,
        )
        start += steps


def heat_map(
    name: str, group: RunGroup, abilities: Sequence[Ability], measured: Measurements
) -> Panel | None:
    """Draw the mean score of every ability at every stage boundary of a group's runs.

    Returns:
        The panel, or None without runs.
    """
    if not group.runs:
        return None
    run = next(iter(group.runs.values()))
    columns = [point.after or "base" for point in run.boundaries]
    drawing = Drawing(height=0.85 + 0.42 * len(abilities))
    axes, words = drawing.axes, []
    axes.grid(visible=False)
    for row, ability in enumerate(abilities):
        for column, after in enumerate(columns):
            score = measured.mean(ability, boundary_of(group, column))
            low, high = ability.scale
            part = (score.value - low) / (high - low) if score else 0.0
            axes.add_patch(_square(column, row, part))
            text = ability.text(score.value) if score else "\N{EN DASH}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9.5)
            words.append(f"{ability.name} after {after} {text}")
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(abilities) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(abilities)), [ability.name for ability in abilities])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(group.label, loc="left", fontweight="bold", fontsize=10.5)
    alt = f"{group.label}, scores at stage boundaries: {'; '.join(words)}."
    return drawing.panel(name, alt)


def _square(column: int, row: int, part: float) -> Rectangle:
    return Rectangle(
        (column - 0.48, row - 0.46),
        0.96,
        0.92,
        facecolor=(*to_rgb(HEAT), max(part, 0.03)),
        edgecolor=GRID,
        linewidth=0.8,
    )
