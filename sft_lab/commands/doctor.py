"""The command ``doctor``: what this machine has, and whether 4-bit training is correct on it."""

import json
from textwrap import TextWrapper

from sft_lab.commands.arguments import add_json, add_tracking_uri, command_parser
from sft_lab.commands.imports import quick_imports
from sft_lab.terminal import columns, silence

_INDENT = 17  # of findings; names are shorter


def main(arguments: list[str]) -> int:
    """Print what this machine has."""
    parser = command_parser("doctor")
    add_json(parser)
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)

    with quick_imports():
        from sft_lab.commands.machine_findings import findings

    silence()
    found = findings(options.tracking_uri)
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, finding in found.items():
        wrapper = TextWrapper(
            width=columns() or 80,
            initial_indent=f"{name:<{_INDENT}}",
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        print(wrapper.fill(finding))
    return 0
