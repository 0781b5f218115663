"""``study``: run, plan or print the grid of runs that answers a question."""

import argparse
import json
import os
import sys
from contextlib import nullcontext
from typing import Any

from omegaconf import OmegaConf

from sft_lab.commands.arguments import add_json, command_parser
from sft_lab.commands.imports import quick_imports
from sft_lab.config.compose import compose
from sft_lab.errors import RequestError
from sft_lab.study.cluster_address import check_listening
from sft_lab.study.fork_server import ForkServer, can_fork, import_for_runs, thread_settings
from sft_lab.terminal import visible


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

    composed, *_ = compose(rest, ["name", "resources"])
    name = OmegaConf.select(composed.config, "name")
    if name and sys.stderr.isatty():
        print(f"{visible(str(name))}: loading ...", file=sys.stderr, flush=True)
    if options.print or options.plan:
        return _show(options, rest)
    return _run(options, rest, OmegaConf.select(composed.config, "resources.cpus"))


def _show(options: argparse.Namespace, rest: list[str]) -> int:
    with quick_imports():
        from sft_lab.study.plan import plan_table, study_plan
        from sft_lab.study.study import lay_out, print_commands, searches_left_out

    study = lay_out(rest, with_cost=options.plan, questions=options.questions)
    if options.plan:
        plan = study_plan(study)
        print(json.dumps(plan, indent=2) if options.json else plan_table(plan))
        return 0
    if commands := print_commands(study):
        print(commands)
    if left_out := searches_left_out(study):
        print(left_out, file=sys.stderr)
    return 0


def _run(options: argparse.Namespace, rest: list[str], cpus: Any) -> int:
    from sft_lab.commands.main import main as run_command

    if options.address is not None:
        check_listening(options.address)
    forks = options.address is None and can_fork()
    if forks:
        # None if it is left out; another value is refused later.
        os.environ |= thread_settings(cpus if isinstance(cpus, int) and cpus > 0 else 1)
    with quick_imports():
        from sft_lab.study.outcome import outcome_json, outcome_table
        from sft_lab.study.study import lay_out, run_study

        forks = forks and import_for_runs()
    with ForkServer(run_command) if forks else nullcontext() as server:
        study = lay_out(rest, questions=options.questions)
        outcome = run_study(study, options.address, server)
    print(json.dumps(outcome_json(outcome), indent=2) if options.json else outcome_table(outcome))
    return 0 if outcome.is_complete else 1
