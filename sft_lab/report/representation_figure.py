"""The drawing of a representation and the sentences under it."""

from matplotlib.axes import Axes

from sft_lab.analysis.representation import Representation, States
from sft_lab.metrics.paired import Difference
from sft_lab.metrics.score import Score
from sft_lab.report.drawing import MARKERS, PAPER, SERIES, Drawing
from sft_lab.terminal import percent


def extra_figure(found: Representation) -> tuple[str, str, str]:
    """Return title, ``<svg>`` element and caption, as a report takes them.

    The element is empty where a linear probe names every source before and after: the drawing
    would show nothing else.
    """
    says_nothing = all(score.value == 1 for score in found.separability.probe)
    return title(found), "" if says_nothing else figure(found), caption(found)


def title(found: Representation) -> str:
    """Return what the drawing is of, in a line."""
    return f"Queries by source in layer {found.layer} of {found.num_layers}: {found.run_name}"


def figure(found: Representation) -> str:
    """Draw the queries before and after training: components above, t-SNE below.

    Each of the four is placed by itself: training moves all states so far that on shared axes the
    base's would be one spot.

    Returns:
        An ``<svg>`` element whose colours are CSS variables, as on a report's page.
    """
    sources = list(dict.fromkeys(found.sources))
    drawing = Drawing(7.4, 7.9, rows=2, columns=2)
    moments = ("before", f"after '{found.stage}'")
    kinds = ("Principal components", "t-SNE")
    for axes_row, kind, places in zip(
        drawing.grid, kinds, (found.components, found.neighbours), strict=True
    ):
        for axes, moment, points in zip(axes_row, moments, places, strict=True):
            for number, source in enumerate(sources):
                members = [name == source for name in found.sources]
                is_first = axes is drawing.axes  # one name a source in the legend
                _scatter(axes, points[members], number, source if is_first else "_")
            axes.set_title(f"{kind}, {moment}", fontsize=9.5, loc="left")
            axes.set_box_aspect(1)
            axes.set_xticks([])
            axes.set_yticks([])
    drawing.legend(sources)
    return drawing.svg(f"representation-{found.run_id[:8]}", f"{title(found)}. {caption(found)}")


def _scatter(axes: Axes, points: States, number: int, label: str) -> None:
    axes.plot(
        points[:, 0],
        points[:, 1],
        linestyle="none",
        marker=MARKERS[number % len(MARKERS)],
        color=SERIES[number % len(SERIES)],
        markeredgecolor=PAPER,
        markeredgewidth=0.4,
        markersize=5,
        alpha=0.85,
        label=label,
    )


def caption(found: Representation) -> str:
    """Return what the drawing shows and the numbers that it cannot show, in sentences."""
    sources = list(dict.fromkeys(found.sources))
    count = len(found.sources) // len(sources)
    measured = found.separability
    before, after = measured.probe
    old, new = measured.silhouettes["all"]
    by_source = "; ".join(
        f"{name} {_value(measured.silhouettes[name][0])} before, "
        f"{_value(measured.silhouettes[name][1])} after"
        for name in sources
    )
    probe = _change(measured.probe_change, in_percent=True)
    silhouette = _change(measured.silhouette_change["all"], in_percent=False)
    return (
        f"{count} queries each of {', '.join(sources)}, at their last token, where the answer "
        f"begins: output of layer {found.layer} of {found.num_layers}, in the base and after stage "
        f"'{found.stage}' of {found.run_name}. Each drawing is placed by itself. The principal "
        f"components hold {percent(found.explained[0])} % of the variance before and "
        f"{percent(found.explained[1])} % after; t-SNE (perplexity {found.perplexity:g}) keeps "
        "neighbours, and its distances between groups say nothing. A linear probe names the "
        "source of "
        f"{_percent(before)} of the queries before and of {_percent(after)} after: {probe}. "
        f"The mean silhouette of the sources is {_interval(old)} before and {_interval(new)} "
        f"after: {silhouette}. By source: {by_source}."
    )


def _percent(score: Score) -> str:
    return f"{percent(score.value)} % [{percent(score.low)}, {percent(score.high)}]"


def _value(score: Score) -> str:
    return f"{score.value:.2f}"


def _interval(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _change(change: Difference, *, in_percent: bool) -> str:
    scale, digits, unit = (100, 1, " points") if in_percent else (1, 3, "")
    ends = " to ".join(f"{scale * end:+.{digits}f}" for end in (change.low, change.high))
    return f"a change of {scale * change.value:+.{digits}f}{unit} ({ends}, p = {change.p:.2g})"
