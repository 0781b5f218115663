"""The command ``compare``; what takes long to import is imported once its arguments are checked."""

from sft_lab.commands.arguments import (
    add_json,
    add_margin,
    add_tracking_uri,
    command_parser,
    in_color,
    number,
)
from sft_lab.commands.imports import quick_imports
from sft_lab.config.ranges import NonNegativeInt
from sft_lab.runs.store import RunStore
from sft_lab.terminal import to_json


def main(arguments: list[str]) -> int:
    """Compare runs, and print what differs."""
    parser = command_parser("compare")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="id, beginning of one, or run name")
    parser.add_argument(
        "--reference", metavar="RUN", help="the run to compare the others with; default: the first"
    )
    parser.add_argument(
        "--over_seeds",
        action="store_true",
        help="average runs whose names differ in 'seed N' only; the name alone stands for all",
    )
    parser.add_argument(
        "--items",
        type=number(NonNegativeInt),
        default=2,
        metavar="N",
        help="forgotten, and gained, items to show of each benchmark; default: %(default)s",
    )
    parser.add_argument(
        "--allow_different_protocols",
        action="store_true",
        help="show scores side by side, flagged, that do not compare",
    )
    add_margin(parser, default="0.05")
    add_json(parser)
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)

    store = RunStore(options.tracking_uri)
    if not options.over_seeds:  # for which a name stands for several runs
        store.check_known(*options.runs, *([options.reference] if options.reference else []))

    with quick_imports():
        from sft_lab.analysis.comparison import compare
        from sft_lab.commands.compare_json import as_json
        from sft_lab.commands.compare_text import report

    compared = compare(
        store,
        options.runs,
        options.reference,
        options.over_seeds,
        options.allow_different_protocols,
        options.margin,
    )
    if options.json:
        print(to_json(as_json(compared)))
    else:
        print(report(compared, options.items, color=in_color()))
    return 0
