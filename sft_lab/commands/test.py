"""``test``: the same as ``validate``; nothing is chosen by the benchmarks."""

from sft_lab.commands import validate


def main(arguments: list[str]) -> int:
    """Score the checkpoint that the arguments name."""
    return validate.main(arguments, "test")
