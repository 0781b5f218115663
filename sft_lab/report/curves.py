"""Curves of an ability over an amount, and over training; one small panel each."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.forgetting import Drop
from sft_lab.analysis.groups import positions
from sft_lab.metrics.score import Score
from sft_lab.report.drawing import DASHES, INK, MARKERS, MUTED, PAPER, SERIES, Drawing
from sft_lab.report.page import Panel


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        label: Its name in the legend.
        levels: Its values on the axis, as the config writes them.
        scores: The score at each.
        seeds: The scores of single seeds at each, drawn as dots; may be empty.
        published: Whether it is drawn from the paper's figures, which have no intervals.
    """

    label: str
    levels: Sequence[str]
    scores: Sequence[Score]
    seeds: Sequence[Sequence[float]] = ()
    published: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line: the score of another run, which does not depend on the axis."""

    label: str
    value: float


def curve(
    name: str,
    title: str,
    ability: Ability,
    axis: str,
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    top: float | None = None,
) -> Panel | None:
    """Draw lines over an axis of amounts, logarithmic if they are numbers.

    Args:
        name: Name of the drawing.
        title: Its heading.
        ability: The ability that was scored.
        axis: Name of the axis.
        lines: Lines; those without scores are left out.
        levels: Horizontal lines.
        top: Upper end of the vertical axis in the score's unit; from the data by default.

    Returns:
        The panel, or None if there is nothing to draw.
    """
    lines = [line for line in lines if line.scores]
    if not lines:
        return None
    places = positions([level for line in lines for level in line.levels])
    drawing = Drawing()
    axes = drawing.axes
    words = []
    for number, line in enumerate(lines):
        style = number % len(SERIES)
        for amount, values in zip(line.levels, line.seeds, strict=False):
            if len(values) > 1:
                shown = [ability.shown(value) for value in values]
                dots(drawing, [places[amount]] * len(shown), shown, SERIES[style])
        pairs = sorted(
            ((places[x], score, x) for x, score in zip(line.levels, line.scores, strict=True)),
            key=lambda pair: pair[0],
        )
        xs = [x for x, _, _ in pairs]
        means = [ability.shown(score.value) for _, score, _ in pairs]
        axes.plot(
            xs,
            means,
            color=MUTED if line.published else SERIES[style],
            linestyle=(0, (1, 2)) if line.published else DASHES[style],
            marker="x" if line.published else MARKERS[style],
            markeredgecolor=MUTED if line.published else PAPER,
            markeredgewidth=1.2 if line.published else 0.8,
            linewidth=1.2 if line.published else 1.8,
            label=line.label,
            zorder=3,
        )
        if not line.published:
            axes.fill_between(
                xs,
                [ability.shown(score.low) for _, score, _ in pairs],
                [ability.shown(score.high) for _, score, _ in pairs],
                color=SERIES[style],
                alpha=0.16,
                linewidth=0,
            )
        steps = ", ".join(f"{x}: {ability.text(score.value)}" for _, score, x in pairs)
        words.append(f"{line.label} {steps}")
    for number, level in enumerate(levels):
        axes.axhline(
            ability.shown(level.value),
            color=INK,
            linewidth=1.0,
            linestyle=[(0, (4, 3)), (0, (1, 2))][number % 2],
            label=level.label,
        )
        words.append(f"{level.label} {ability.text(level.value)}")
    axes.set_xticks(list(places.values()), list(places), rotation=45 if len(places) > 7 else 0)
    axes.set_xlabel(axis)
    finish(drawing, ability, title, top)
    drawing.legend([*(line.label for line in lines), *(level.label for level in levels)])
    alt = f"{title}, {ability.unit}, over {axis}. {'; '.join(words)}."
    return drawing.panel(name, alt)


def dots(drawing: Drawing, xs: Sequence[float], ys: Sequence[float], colour: str) -> None:
    """Draw single seeds as faint dots below the line of their mean."""
    drawing.axes.plot(
        xs,
        ys,
        linestyle="none",
        marker="o",
        markersize=3,
        markeredgewidth=0,
        color=colour,
        alpha=0.45,
        zorder=2,
    )


def finish(drawing: Drawing, ability: Ability, title: str, top: float | None = None) -> None:
    """Set heading, unit and range of a panel's vertical axis."""
    axes = drawing.axes
    low, high = map(ability.shown, ability.scale)
    if top is not None:
        high = min(high, ability.shown(top))
    margin = 0.03 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel(f"{ability.key.split('/')[-1].replace('_', ' ')}, {ability.unit}")
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10.5)


def top_of(ability: Ability, lines: Sequence[Line], levels: Sequence[Level]) -> float:
    """Return a round upper end of a vertical axis that holds all lines with their intervals."""
    low, high = ability.scale
    step = (high - low) / 5
    ends = [score.high for line in lines for score in line.scores]
    greatest = max([*ends, *(level.value for level in levels)], default=high)
    return next((low + n * step for n in range(1, 6) if low + n * step >= greatest), high)


def drop_ends(drops: Sequence[Drop]) -> tuple[float, float]:
    """Return ends of an axis that holds the changes of all abilities, as parts of their scales."""
    values = [0.0]
    for drop in drops:
        difference, (low, high) = drop.comparison.difference, drop.comparison.ability.scale
        if difference is not None:
            ends = (difference.value, difference.low, difference.high)
            values += [end / (high - low) for end in ends if isfinite(end)]
    margin = 0.04 * max(max(values) - min(values), 0.1)
    return min(values) - margin, max(values) + margin


def drop_panel(
    name: str, ability: Ability, drops: Sequence[Drop], ends: tuple[float, float]
) -> Panel | None:
    """Draw the change of one ability from its best stage end to the end, a row for each group.

    Args:
        name: Name of the drawing.
        ability: The ability.
        drops: The changes of all abilities.
        ends: Ends of the horizontal axis, as parts of the ability's scale: one scale for all.

    Returns:
        The panel, or None if nothing was compared.
    """
    tested = [d for d in drops if d.comparison.ability == ability and d.comparison.difference]
    if not tested:
        return None
    size = ability.scale[1] - ability.scale[0]
    drawing = Drawing(width=3.75, height=1.15 + 0.3 * len(tested))
    axes, words = drawing.axes, []
    axes.axvline(0, color=INK, linewidth=1.0)
    for row, drop in enumerate(tested):
        difference = drop.comparison.difference
        assert difference is not None
        value, low, high = map(ability.shown, (difference.value, difference.low, difference.high))
        shown = drop.comparison.shown
        colour = (SERIES[1] if value < 0 else SERIES[0]) if shown else MUTED
        axes.plot([low, high], [row, row], color=colour, linewidth=1.8)
        axes.plot(
            [value],
            [row],
            color=colour,
            marker="o",
            markersize=6.5,
            markerfacecolor=colour if shown else PAPER,
            markeredgewidth=1.5,
        )
        words.append(
            f"{drop.group.label} {ability.change(difference.value)} "
            f"({'shown' if shown else 'may be chance'})"
        )
    axes.set_yticks(range(len(tested)), [drop.group.label for drop in tested])
    axes.set_ylim(len(tested) - 0.4, -0.6)
    axes.set_xlim(*(ability.shown(end * size) for end in ends))
    axes.set_xlabel("change in points" if ability.is_share else f"change, scale {ability.unit}")
    axes.set_title(ability.name, loc="left", fontweight="bold", fontsize=10.5)
    alt = f"Change of {ability.name} from its best stage end to the end: {'; '.join(words)}."
    return drawing.panel(name, alt)
