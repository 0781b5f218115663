"""Panels drawn by matplotlib as SVG whose colours follow the page: light, dark or print.

Colours are drawn as sentinels and replaced with CSS variables afterwards, and text stays text: one
figure suits both colour schemes, can be searched, and is the same to the byte each time.
"""

import re
from collections.abc import Sequence
from functools import partial
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from sft_lab.report.page import Panel, slug

INK, MUTED, GRID, PAPER, HEAT = "#a10001", "#a10002", "#a10003", "#a10004", "#a10005"
SERIES = ("#a10010", "#a10011", "#a10012", "#a10013", "#a10014", "#a10015")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 2)))

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    HEAT: "--heat",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
}

# Okabe and Ito's colours, safe for colour-blind readers, darkened or lightened until each
# has a contrast of 3 or more with its background; markers and dashes differ as well.
LIGHT = {
    "--paper": "#ffffff",
    "--panel": "#f6f7f9",
    "--ink": "#1c2430",
    "--muted": "#5a6472",
    "--grid": "#d9dde3",
    "--heat": "#6db3e3",
    "--good": "#00695c",
    "--bad": "#b3261e",
    "--series-1": "#0072b2",
    "--series-2": "#c94f00",
    "--series-3": "#00805d",
    "--series-4": "#9b4f96",
    "--series-5": "#8a6a00",
    "--series-6": "#5a6472",
}
DARK = {
    "--paper": "#14181f",
    "--panel": "#1d232d",
    "--ink": "#e7ebf0",
    "--muted": "#a3adba",
    "--grid": "#39424f",
    "--heat": "#1d6296",
    "--good": "#5fd0bd",
    "--bad": "#ff9d94",
    "--series-1": "#5ab8f0",
    "--series-2": "#ff9458",
    "--series-3": "#35cb9e",
    "--series-4": "#e39fd9",
    "--series-5": "#ecc440",
    "--series-6": "#b4bdc9",
}

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # names may hold a $
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "figure.constrained_layout.use": True,
}
_FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


class Drawing:
    """One small drawing with one pair of axes, readable on a narrow screen.

    Args:
        width: Width in inches.
        height: Height in inches.
        rows: Rows of axes, where there are several.
        columns: Columns of axes.
    """

    def __init__(
        self, width: float = 3.7, height: float = 2.6, rows: int = 1, columns: int = 1
    ) -> None:
        with matplotlib.rc_context(_SETTINGS):
            self.figure = Figure(figsize=(width, height))
            grid = self.figure.subplots(rows, columns, squeeze=False)
            self.grid: list[list[Axes]] = grid.tolist()
            self.axes = self.grid[0][0]

    def legend(self, labels: Sequence[str]) -> None:
        """Add a legend above the axes, where it hides no line."""
        widest = max(map(len, labels))
        columns = max(1, min(3, int(50 // (widest + 8))))
        with matplotlib.rc_context(_SETTINGS):
            self.figure.legend(
                loc="outside upper left", ncols=columns, handlelength=2.6, columnspacing=1.2
            )

    def panel(self, name: str, alt: str) -> Panel:
        """Return the drawing as a panel; its name may hold any characters."""
        name = slug(name)
        return Panel(name, partial(self.svg, name, alt), alt)

    def svg(self, name: str, alt: str) -> str:
        """Return the drawing as an ``<svg>`` element.

        Args:
            name: Name of the drawing, which sets its ids apart from those of the others on a page.
            alt: Its content, in words.
        """
        for written in self.figure.findobj(Text):
            written.set_parse_math(False)
        text = StringIO()
        with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            FigureCanvasSVG(self.figure).print_svg(text, metadata=nothing)
        return _clean(text.getvalue(), name, alt)


def stand_alone(svg: str) -> str:
    """Return an ``<svg>`` element as a file of its own, with both colour schemes in it."""
    style = f"<style>{scheme_css('svg')}svg{{background:var(--paper);font-family:{_FONTS}}}</style>"
    start = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:start]}{style}{svg[start:]}\n'


def scheme_css(selector: str) -> str:
    """Return the CSS variables of both colour schemes; paper is always light."""

    def block(colours: dict[str, str]) -> str:
        return selector + "{" + ";".join(f"{key}:{value}" for key, value in colours.items()) + "}"

    dark = f"@media screen and (prefers-color-scheme: dark){{{block(DARK)}}}"
    return f"{block(LIGHT)}{dark}"


def _shortened(attribute: re.Match[str]) -> str:
    """Return coordinates with two decimals, of 1/72 inch each."""
    return re.sub(r"(\d\.\d{2})\d+", r"\1", attribute[0])


def _clean(svg: str, name: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")  # that of the page
    svg = re.sub(r"(?m)(?<![ \t])[ \t]+$", "", svg)
    svg = re.sub(r" (?:d|x|y|transform|style)=\"[^\"]*\"", _shortened, svg)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r" id=\"([^\"]+)\"", lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    box = re.search(r"viewBox=\"([^\"]+)\"", head[0])
    assert box is not None
    width, height = (float(part) * 4 / 3 for part in box[1].split()[2:])  # points to CSS pixels
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box[1]}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(alt)}">'
    )
    return f"{opening}<title>{escape(alt)}</title>{svg[head.end() :]}"
