"""``world build``: build the embedded world from scratch."""

from pathlib import Path

from sft_lab.commands.arguments import command_parser, number
from sft_lab.config.ranges import PositiveInt, Seed
from sft_lab.paths import make_folder


def main(arguments: list[str]) -> int:
    """Build sources, benchmarks, tokenizer and base in a folder."""
    parser = command_parser("world")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser(
        "build", help="build sources, benchmarks, tokenizer and base from scratch"
    )
    action.add_argument("--out", type=Path, required=True, metavar="D", help="the folder to fill")
    action.add_argument("--seed", type=number(Seed), help="default: the shipped world's")
    action.add_argument(
        "--tokens",
        type=number(PositiveInt),
        help="pretraining budget; default: the shipped world's",
    )
    options = parser.parse_args(arguments)

    from sft_lab.world.build import build

    make_folder("--out", options.out)
    chosen = {"seed": options.seed, "num_tokens": options.tokens}
    build(options.out, **{key: value for key, value in chosen.items() if value is not None})
    return 0
