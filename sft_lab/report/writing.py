"""A report as files: a self-contained page, Markdown with its figures, CSV."""

import csv
import io
import re
from importlib import resources
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sft_lab.report.drawing import scheme_css, stand_alone
from sft_lab.report.page import PlainTable, Report, TableCell
from sft_lab.terminal import visible


def write_report(report: Report, out: Path) -> None:
    """Write ``report.html``, ``report.md``, ``figures/*.svg`` and the CSV files into a folder.

    Files of the same names are replaced; equal reports give equal bytes.

    Args:
        report: The report.
        out: The folder, created if missing.
    """
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, text in report_files(report).items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")


def report_files(report: Report) -> dict[str, str]:
    """Return the text of every file of a report, by its path in the report's folder."""
    files = {
        "report.html": html(report),
        "report.md": markdown(report),
        **{
            f"figures/{panel.name}.svg": stand_alone(panel.svg)
            for figure in report.figures
            for panel in figure.panels
        },
        **{name: _csv(table) for name, table in report.tables.items()},
    }
    return {name: visible(text) for name, text in files.items()}


def html(report: Report) -> str:
    """Return a report as one self-contained page."""
    style = scheme_css(":root") + _template("report.css")
    page = _environment(autoescape=True).get_template("report.html.j2")
    return page.render(report=report, style=Markup(style), svg=Markup)


def markdown(report: Report) -> str:
    """Return a report as Markdown, which refers to the files of its figures."""
    return _environment(autoescape=False).get_template("report.md.j2").render(report=report)


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda c: c if isinstance(c, TableCell) else TableCell(str(c))
    environment.filters["together"] = _together
    environment.filters["md"] = _md
    environment.filters["fence"] = _fence
    return environment


def _template(name: str) -> str:
    folder = resources.files("sft_lab.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _together(text: str) -> str:
    """Return text with no line breaks between figures and their units."""
    return re.sub(
        r"(?<=p) (?=[=<])|(?<=[=<]) (?=\d)|(?<=\d) (?=%|points)", "\N{NO-BREAK SPACE}", text
    )


def _md(text: str) -> str:
    """Return text escaped for a line or a table cell of Markdown."""
    for sign in "\\`*_<>[]|#~":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>" else f"&{'lg'[sign == '>']}t;")
    return " ".join(text.split())


def _fence(text: str) -> str:
    """Return text as inline code in a Markdown table, with its line breaks marked."""
    shown = " \N{RETURN SYMBOL} ".join(text.replace("|", "\\|").splitlines())
    ticks = "`"
    while ticks in shown:
        ticks += "`"
    return f"{ticks} {shown} {ticks}"


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _csv_cell(value: object) -> object:
    """Return a cell that no spreadsheet runs as a formula.

    >>> _csv_cell("=1+1"), _csv_cell("-5"), _csv_cell(-0.5)
    ("'=1+1", "'-5", -0.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _csv(table: PlainTable) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, table.columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        writer.writerow({column: _csv_cell(value) for column, value in row.items()})
    return text.getvalue()
