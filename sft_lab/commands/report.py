"""The command ``report``: the page of a study."""

import sys
from pathlib import Path

from sft_lab.commands.arguments import add_margin, add_tracking_uri, command_parser
from sft_lab.commands.imports import quick_imports
from sft_lab.paths import find_config
from sft_lab.runs.store import RunStore


def main(arguments: list[str]) -> int:
    """Write the report of a study."""
    parser = command_parser("report")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--study", metavar="S", help="its config, run id or name")
    what.add_argument(
        "--results",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="results.json of earlier reports of one study, such as one a question; no store",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="D", help="a folder")
    parser.add_argument(
        "--represent", nargs="+", default=[], metavar="RUN", help="draw hidden states of these runs"
    )
    add_margin(parser, default="the study's")
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)
    if options.results and options.represent:
        parser.error("--represent needs the store: give --study in place of --results")
    if options.results:
        with quick_imports():
            from sft_lab.commands.study_report import make_report_of_files

        page = make_report_of_files(options.results, options.out, options.margin)
    else:
        store = RunStore(options.tracking_uri)
        if options.study.endswith((".yaml", ".yml")):
            find_config(options.study, "--study", "configs/studies/rq1.yaml")
        else:
            store.check_known(options.study, kind="study")
        store.check_known(*options.represent)

        with quick_imports():
            from sft_lab.commands.study_report import make_report

        page = make_report(store, options.study, options.out, options.represent, options.margin)
    print(f"report written to {page}", file=sys.stderr)
    return 0
