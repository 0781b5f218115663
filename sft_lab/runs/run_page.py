"""A run at a glance: its conclusion and abilities by stage, as text, picture and page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO

from sft_lab.metrics.score import Score
from sft_lab.runs.evaluations import Point

# Okabe and Ito's colours, safe for colour-blind readers.
_COLOURS = ("#0072b2", "#c94f00", "#00805d", "#8a4a78", "#8c6d00", "#3a6ea5")
_MARKERS = "os^DvP"


@dataclass(frozen=True)
class RunPage:
    """The contents of a run's page.

    Attributes:
        name: The run.
        conclusion: What the run has forgotten, in one sentence.
        points: Its evaluations so far, in order of steps.
        abilities: Metric key of the primary score by ability; all in [0, 1].
        stages: Name and last step of every stage.
    """

    name: str
    conclusion: str
    points: Sequence[Point]
    abilities: Mapping[str, str]
    stages: Sequence[tuple[str, int]]

    def description(self) -> str:
        """Return the run's description for MLflow: the conclusion, and abilities by stage.

        MLflow's page folds a description higher than 100 pixels and fades its lower half. A line
        without a paragraph's margins and a table of three abilities are just as high.
        """
        shown = [p for p in self.points if p.is_boundary or p is self.points[-1]]
        titles = [p.after or (f"step {p.step:,}" if p.step else "base") for p in shown]
        rows = [
            [name, *(_cell(point.scores.get(key), _rounded) for point in shown)]
            for name, key in self.abilities.items()
        ]
        head, *body = (f"| {' |&nbsp; '.join(line)} |" for line in (["%", *titles], *rows))
        table = "\n".join([head, f"| --- |{' ---: |' * len(titles)}", *body])
        return f"<div>{escape(self.conclusion)}</div>\n\n{table}"

    def html(self) -> str:
        """Return a page that stands alone: the drawing, and every evaluation as a table."""
        head = "".join(f"<th>{escape(name)}</th>" for name in ("step", "end of", *self.abilities))
        body = "".join(
            "<tr>"
            + "".join(
                f"<td>{escape(cell)}</td>"
                for cell in (
                    f"{point.step:,}",
                    point.after or "",
                    *(_cell(point.scores.get(key), _interval) for key in self.abilities.values()),
                )
            )
            + "</tr>"
            for point in self.points
        )
        title = escape(self.name)
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<title>{title}</title><style>body{{font:15px/1.5 system-ui,sans-serif;margin:1.5rem;"
            "max-width:60rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
            "td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #d9dde3}"
            "svg{max-width:100%;height:auto}</style></head><body>"
            f"<h1>{title}</h1><p>{escape(self.conclusion)}</p>{self._svg()}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            "<p>Scores in percent with 95 % intervals. Forgetting is measured against the best "
            "earlier end of a stage, by paired tests on the same items, corrected together.</p>"
            "</body></html>\n"
        )

    def png(self) -> bytes:
        """Return the drawing as a picture."""
        out = BytesIO()
        self._figure().savefig(out, format="png", dpi=130)
        return out.getvalue()

    def _svg(self) -> str:
        from matplotlib import rc_context

        out = StringIO()
        with rc_context({"svg.hashsalt": "sft_lab"}):  # the same ids each time
            self._figure().savefig(out, format="svg", metadata={"Date": None})
        return out.getvalue()[out.getvalue().index("<svg") :]

    def _figure(self):  # type: ignore[no-untyped-def]  # of a library that is imported below
        from matplotlib.figure import Figure  # half a second, and most commands draw nothing

        figure = Figure(figsize=(9, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, (name, key) in enumerate(self.abilities.items()):
            scores = [(p.step, p.scores[key]) for p in self.points if key in p.scores]
            steps = [step for step, _ in scores]
            colour = _COLOURS[number % len(_COLOURS)]
            low, high = ([100 * getattr(s, end) for _, s in scores] for end in ("low", "high"))
            values = [100 * score.value for _, score in scores]
            marker = _MARKERS[number % len(_MARKERS)]
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, values, color=colour, marker=marker, markersize=4, label=name)
        start = 0
        for stage, end in self.stages:
            axes.axvline(end, color="#9aa3af", linewidth=0.8, linestyle=":")
            axes.text((start + end) / 2, 103, stage, ha="center", va="bottom", color="#5a6472")
            start = end
        axes.set_xlim(0, max(start, 1))
        axes.set_ylim(-3, 103)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("score, %")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        return figure


def _cell(score: Score | None, text: Callable[[Score], str]) -> str:
    return "-" if score is None else text(score)


def _interval(score: Score) -> str:
    """Return a score in percent with its interval: ``98.5 [91.6, 99.7]``."""
    low, high = 100 * score.low, 100 * score.high
    return f"{100 * score.value:.1f} [{low:.1f}, {high:.1f}]"


def _rounded(score: Score) -> str:
    """Return a score in percent with its rounded interval, as a terminal shows it."""
    return f"{100 * score.value:.1f} [{100 * score.low:.0f}-{100 * score.high:.0f}]"
