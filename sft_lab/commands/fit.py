"""``fit``: train a run, or say with ``--plan`` what it would cost."""

import sys

from sft_lab.commands.imports import quick_imports
from sft_lab.commands.run_help import asks_for_help, wants_every_key
from sft_lab.launch.early import check_early
from sft_lab.launch.keys import read_request
from sft_lab.terminal import silence, visible


def main(arguments: list[str]) -> int:
    """Train the run that the arguments describe."""
    if asks_for_help(arguments, "fit"):
        return 0
    arguments = wants_every_key(arguments)
    asks_only = "--help" in arguments
    request = read_request(arguments) if asks_only else check_early(arguments, "fit")
    if sys.stdout.isatty() and not asks_only and "--print_config" not in arguments:
        print(f"{visible(request.strategy)}: loading ...", flush=True)
    if "--plan" in arguments:
        with quick_imports():
            from sft_lab.commands.plan import plan_fit

        silence()
        print(plan_fit(arguments))
        return 0
    with quick_imports():
        from sft_lab.launch.parser import parse_request
        from sft_lab.launch.run import fit

    silence()  # after Lightning's import, which sets its own log level
    fit(parse_request(request))
    return 0
