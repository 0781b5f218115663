"""``fit``: train a run, or say with ``--plan`` what it would cost."""

from sft_lab.terminal import silence


def main(arguments: list[str]) -> int:
    """Train the run that the arguments describe."""
    silence()
    if "--plan" in arguments:
        from sft_lab.commands.plan import plan_fit

        print(plan_fit(arguments))
        return 0
    from sft_lab.launch.parser import parse
    from sft_lab.launch.run import fit

    fit(parse(arguments))
    return 0
