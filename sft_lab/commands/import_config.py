"""The command ``import``: another tool's SFT config as a run's config."""

import sys
from pathlib import Path

import yaml

from sft_lab.commands.arguments import command_parser
from sft_lab.commands.other_tools import translate
from sft_lab.errors import RequestError
from sft_lab.terminal import visible


def main(arguments: list[str]) -> int:
    """Translate a config, and name the keys that have no counterpart."""
    parser = command_parser("import")
    parser.add_argument("file", type=Path, metavar="FILE", help="of axolotl or LLaMA-Factory")
    parser.add_argument("--out", type=Path, metavar="O", help="a new YAML file; default: stdout")
    options = parser.parse_args(arguments)
    if options.out is not None and options.out.exists():
        raise RequestError(f"--out {options.out} already exists; name a new file.")
    found = translate(options.file)
    where = options.out or "run.yaml"
    head = (
        f"# From {options.file.name} of {found.tool}.\n# python -m sft_lab fit --config {where}\n"
    )
    text = visible(head + yaml.safe_dump(found.config, sort_keys=False, width=120))
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text, encoding="utf-8")
    for key, value in found.left_out.items():
        print(visible(f"left out: {key}: {value}"), file=sys.stderr)
    return 0
