"""``study``: run, plan or print the grid of runs that answers a question."""

import json
import sys

from sft_lab.commands.arguments import add_json, command_parser
from sft_lab.errors import RequestError


def main(arguments: list[str]) -> int:
    """Run the missing runs of a study; return 1 if a run has failed."""
    parser = command_parser(
        "study",
        usage="sft-lab study --config S [--KEY VALUE ...] [--questions Q ...] [--plan | --print] "
        "[--address A] [--json]",
    )
    parser.add_argument(
        "--address", metavar="A", help="a running Ray cluster; default: start one on this machine"
    )
    parser.add_argument(
        "--questions", nargs="+", metavar="Q", help="these questions only; default: all"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--plan", action="store_true", help="estimate the cost and run nothing")
    mode.add_argument(
        "--print", action="store_true", help="print one command per run, for Slurm and others"
    )
    add_json(parser)
    options, rest = parser.parse_known_args(arguments)
    if options.print and options.json:
        raise RequestError("--print prints shell commands, not JSON; leave out --print or --json.")

    from sft_lab.study.outcome import outcome_json, outcome_table
    from sft_lab.study.plan import plan_table, study_plan
    from sft_lab.study.study import lay_out, print_commands, run_study, searches_left_out

    study = lay_out(rest, with_cost=options.plan, questions=options.questions)
    if options.print:
        if commands := print_commands(study):
            print(commands)
        if left_out := searches_left_out(study):
            print(left_out, file=sys.stderr)
        return 0
    if options.plan:
        plan = study_plan(study)
        print(json.dumps(plan, indent=2) if options.json else plan_table(plan))
        return 0
    outcome = run_study(study, options.address)
    print(json.dumps(outcome_json(outcome), indent=2) if options.json else outcome_table(outcome))
    return 0 if outcome.is_complete else 1
