"""``test``: score a checkpoint, or the bare base, on report items, if there is a split."""

from sft_lab.commands import validate


def main(arguments: list[str]) -> int:
    """Score the checkpoint that the arguments name."""
    return validate.main(arguments, "test")
