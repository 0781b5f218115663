"""What each strategy lost of each ability, drawn with intervals."""

from collections.abc import Sequence

from sft_lab.study.report.abilities import Ability
from sft_lab.study.report.drawing import INK, MUTED, PAPER, SERIES, Drawing
from sft_lab.study.report.page import Panel
from sft_lab.study.report.strategies import Drop


def drop_panel(name: str, ability: Ability, drops: Sequence[Drop]) -> Panel | None:
    """Draw the change of one ability from its best stage end to the end, a row for each group.

    Returns:
        The panel, or None where nothing was compared.
    """
    told = [d for d in drops if d.comparison.ability == ability and d.comparison.difference]
    if not told:
        return None
    drawing = Drawing(width=3.75, height=1.15 + 0.3 * len(told))
    axes, words = drawing.axes, []
    axes.axvline(0, color=INK, linewidth=1.0)
    for row, drop in enumerate(told):
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
    axes.set_yticks(range(len(told)), [drop.group.label for drop in told])
    axes.set_ylim(len(told) - 0.4, -0.6)
    axes.set_xlabel("change in points" if ability.is_share else f"change, scale {ability.unit}")
    axes.set_title(ability.name, loc="left", fontweight="bold", fontsize=10.5)
    alt = f"Change of {ability.name} from its best stage end to the end: {'; '.join(words)}."
    return drawing.panel(name, alt)
