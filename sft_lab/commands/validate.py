"""``validate``: score a checkpoint, or the bare base, with a config's benchmarks."""

from sft_lab.terminal import silence


def main(arguments: list[str], command: str = "validate") -> int:
    """Score the checkpoint that the arguments name."""
    from sft_lab.launch.parser import parse
    from sft_lab.launch.run import score

    silence()
    score(parse(arguments, command))
    return 0
