"""``validate``: score a checkpoint, or the bare base, on selection items, if there is a split."""

from sft_lab.commands.imports import quick_imports
from sft_lab.commands.run_help import asks_for_help, wants_every_key
from sft_lab.launch.early import check_early
from sft_lab.launch.keys import read_request
from sft_lab.terminal import silence


def main(arguments: list[str], command: str = "validate") -> int:
    """Score the checkpoint that the arguments name."""
    if asks_for_help(arguments, command):
        return 0
    arguments = wants_every_key(arguments)
    read = read_request if "--help" in arguments else check_early
    request = read(arguments, command)
    with quick_imports():
        from sft_lab.launch.parser import parse_request
        from sft_lab.launch.run import score

    silence()
    score(parse_request(request, command))
    return 0
