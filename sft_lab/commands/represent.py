"""The command ``represent``: where a run's sources lie inside its model."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from sft_lab.commands.arguments import add_tracking_uri, command_parser, number
from sft_lab.config.ranges import PositiveFloat, PositiveInt, Seed
from sft_lab.paths import make_folder
from sft_lab.runs.store import RunStore
from sft_lab.terminal import silence, visible

_NumQueries = Annotated[int, Ge(5)]
"""A probe has five folds of them."""


def main(arguments: list[str]) -> int:
    """Draw where a run's sources lie inside its model."""
    parser = command_parser("represent")
    parser.add_argument("run", metavar="RUN", help="id, beginning of one, or run name")
    parser.add_argument("--out", type=Path, required=True, metavar="D", help="svg, csv and json")
    parser.add_argument("--stage", metavar="S", help="after this stage; default: the last")
    parser.add_argument(
        "--layer",
        type=number(PositiveInt),
        metavar="L",
        help="from 1; default: 15, the middle one of few",
    )
    parser.add_argument(
        "--num_queries",
        type=number(_NumQueries),
        default=100,
        metavar="N",
        help="of a source; default: 100",
    )
    parser.add_argument(
        "--perplexity",
        type=number(PositiveFloat),
        default=30.0,
        metavar="P",
        help="of t-SNE; default: 30",
    )
    parser.add_argument("--seed", type=number(Seed), default=0, metavar="N", help="default: 0")
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)

    store = RunStore(options.tracking_uri)
    store.check_known(options.run)

    from sft_lab.commands.hidden_states import represent, write
    from sft_lab.report.representation_figure import caption

    silence()
    make_folder("--out", options.out)
    found = represent(
        store,
        options.run,
        stage=options.stage,
        layer=options.layer,
        num_queries=options.num_queries,
        perplexity=options.perplexity,
        seed=options.seed,
    )
    write(found, options.out)
    print(visible(caption(found)))
    return 0
