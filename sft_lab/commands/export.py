"""The command ``export``: a checkpoint as PEFT adapters, or one merged model without a base."""

import sys
from pathlib import Path

from sft_lab.commands.arguments import command_parser
from sft_lab.launch.early import check_checkpoint_file


def main(arguments: list[str]) -> int:
    """Export a checkpoint."""
    parser = command_parser("export")
    parser.add_argument("--ckpt_path", type=Path, required=True, metavar="K", help="a checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="D", help="a new folder")
    parser.add_argument("--what", choices=("adapter", "merged"), default="adapter")
    options = parser.parse_args(arguments)
    check_checkpoint_file(options.ckpt_path)

    from sft_lab.commands.trained_model import export

    export(options.ckpt_path, options.out, options.what)
    print(f"{options.what} written to {options.out}", file=sys.stderr)
    return 0
