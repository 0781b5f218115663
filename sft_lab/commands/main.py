"""The command line: runs go through LightningCLI, the lab's own commands stand beside them."""

import argparse
import json
import logging
import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn

from sft_lab.errors import BusyError, Interrupted, RequestError

_RUN_COMMANDS = ("fit", "validate", "test")
_TRACKING_URI = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlruns/mlflow.db"


def main(arguments: list[str]) -> int:
    """Run a command of the lab.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the request was wrong, 75 another process is at
        it, 130 and 143 after signals.
    """
    _be_quiet()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        if arguments[:1] == ["fit"] and "--plan" in arguments:
            from sft_lab.commands.plan import plan_fit

            print(plan_fit(arguments[1:]))
            return 0
        if arguments and arguments[0] in _RUN_COMMANDS:
            from sft_lab.launch.run import LabCLI

            LabCLI(arguments[0], arguments[1:])
            return 0
        return _own_command(arguments)
    except RequestError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(fault, BusyError) else 2
    except Interrupted as stop:
        goes_on = arguments[:1] == ["fit"]
        forked = any(argument.partition("=")[0] == "--from" for argument in arguments)
        which = "The same command without --from," if forked else "The same command"
        how = f" {which} with --ckpt_path last goes on from here." if goes_on else ""
        print(f"\nStopped by {stop}.{how}", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's own flush at exit
        return 1


def _be_quiet() -> None:
    """Keep libraries' bars and advice out of the one line that a person watches; show any text."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # rows hold what a terminal in ASCII cannot show
            stream.reconfigure(errors="backslashreplace")


def _own_command(arguments: list[str]) -> int:
    options, rest = _parser().parse_known_args(arguments)
    if options.command is None:
        _parser().print_help()
        return 2
    if options.command in ("inspect", "study"):
        options.rest = rest
    elif rest:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    return int(globals()[f"_{options.command}"](options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft_lab",
        description="What does each source of fine-tuning data do to each ability of a model?",
        epilog="Runs take a config: python -m sft_lab fit --config configs/world/dmt.yaml. "
        "fit --ckpt_path last goes on with a run that was stopped; fit --from RUN@STAGE starts a "
        "new one from the end of another run's stage.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, help_ in (
        ("fit", "train through the stages of a strategy, abilities measured on the way"),
        ("validate", "score a checkpoint (--ckpt_path), or the bare base"),
        ("test", "the same"),
    ):
        commands.add_parser(name, help=help_, add_help=False)
    inspect = commands.add_parser(
        "inspect",
        help="what a config trains on, to the sample; loads no model",
        usage="python -m sft_lab inspect --config C [--KEY VALUE ...] [--stage S] [-n N] [--json]",
        allow_abbrev=False,
    )
    inspect.add_argument("--stage", metavar="S", help="this stage only")
    inspect.add_argument(
        "-n", type=int, default=1, help="samples of every source of every stage; default: 1"
    )
    inspect.add_argument("--json", action="store_true", help="one JSON object instead of text")
    score = commands.add_parser("score", help="grade completions of any model; loads none")
    score.add_argument(
        "benchmark", metavar="BENCHMARK", help="gsm8k, humaneval, mbpp, ifeval or mt_bench"
    )
    score.add_argument("--problems", required=True, metavar="P", help="the benchmark's own file")
    score.add_argument(
        "--completions",
        required=True,
        metavar="F",
        help='JSONL: {"task_id": ..., "completion": ...}',
    )
    score.add_argument("--out", type=Path, metavar="O", help="one JSON row per completion")
    score.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    score.add_argument("--model", metavar="M", help="mt_bench: whose judgements, of several")
    score.add_argument(
        "--sandbox",
        default="isolated",
        metavar="L",
        help="for generated code: isolated, isolated_or_limited, limited; default: %(default)s",
    )
    compare = commands.add_parser(
        "compare", help="abilities of runs at every stage boundary, with paired tests"
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="id, beginning of one, or run name")
    compare.add_argument(
        "--reference", metavar="RUN", help="what the others are compared with; default: the first"
    )
    compare.add_argument(
        "--over_seeds",
        action="store_true",
        help="take runs of one name but for 'seed N' together; the name alone stands for all",
    )
    compare.add_argument(
        "--items",
        type=int,
        default=5,
        metavar="N",
        help="forgotten, and regained, items to show of every benchmark; default: %(default)s",
    )
    compare.add_argument(
        "--allow_different_protocols",
        action="store_true",
        help="show scores side by side, flagged, that do not compare",
    )
    compare.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    compare.add_argument("--tracking_uri", default=_TRACKING_URI, help="default: %(default)s")
    study = commands.add_parser(
        "study",
        help="a grid of runs that answers a question, on Ray; goes on where it was",
        usage="python -m sft_lab study --config S [--KEY VALUE ...] [--plan | --print] "
        "[--address A]",
        allow_abbrev=False,
    )
    study.add_argument("--address", metavar="A", help="a Ray cluster; default: one of its own")
    what = study.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="say what would run, and run nothing")
    what.add_argument(
        "--print", action="store_true", help="one command a run, for Slurm and others"
    )
    study.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    report = commands.add_parser("report", help="a study as a page, with figures and findings")
    report.add_argument("--study", required=True, metavar="S", help="its config, run id or name")
    report.add_argument("--out", type=Path, required=True, metavar="D", help="a folder")
    report.add_argument(
        "--represent", nargs="+", default=[], metavar="RUN", help="draw hidden states of these runs"
    )
    report.add_argument("--tracking_uri", default=_TRACKING_URI, help="default: %(default)s")
    export = commands.add_parser("export", help="a checkpoint as PEFT adapter or merged model")
    export.add_argument("--ckpt_path", type=Path, required=True, metavar="K")
    export.add_argument("--out", type=Path, required=True, metavar="D", help="a new folder")
    export.add_argument("--what", choices=("adapter", "merged"), default="adapter")
    represent = commands.add_parser(
        "represent", help="where a run's sources lie inside its model, before and after training"
    )
    represent.add_argument("run", metavar="RUN", help="id, beginning of one, or run name")
    represent.add_argument("--out", type=Path, required=True, metavar="D", help="svg, csv and json")
    represent.add_argument("--stage", metavar="S", help="behind this stage; default: the last")
    represent.add_argument(
        "--layer", type=int, metavar="L", help="from 1; default: 15, the middle one of few"
    )
    represent.add_argument(
        "--num_queries", type=int, default=100, metavar="N", help="of a source; default: 100"
    )
    represent.add_argument(
        "--perplexity", type=float, default=30.0, metavar="P", help="of t-SNE; default: 30"
    )
    represent.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    represent.add_argument("--tracking_uri", default=_TRACKING_URI, help="default: %(default)s")
    doctor = commands.add_parser("doctor", help="what this machine has")
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    doctor.add_argument("--tracking_uri", default=_TRACKING_URI, help="default: %(default)s")
    world = commands.add_parser("world", help="the embedded world")
    actions = world.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="sources, benchmarks, tokenizer and base from nothing")
    build.add_argument("--out", type=Path, required=True, metavar="D")
    build.add_argument("--seed", type=int, help="default: that of the shipped world")
    build.add_argument(
        "--tokens", type=int, help="pretraining budget; default: the shipped world's"
    )
    return parser


def _in_color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _inspect(options: argparse.Namespace) -> int:
    from sft_lab.commands.inspect import inspection, inspection_text
    from sft_lab.config.compose import compose
    from sft_lab.launch.parser import RUN_KEYS, planned
    from sft_lab.terminal import silence

    if options.n < 0:
        raise RequestError(f"-n must be 0 or more, got {options.n}.")
    silence()
    composed, files, rest = compose(options.rest, RUN_KEYS)
    if not files:
        raise RequestError("inspect needs --config FILE, for instance configs/world/dmt.yaml.")
    if rest:
        raise RequestError(f"inspect knows no {rest[0]}; see python -m sft_lab inspect --help.")
    log = logging.getLogger("sft_lab.data")
    level = log.level
    log.setLevel(logging.ERROR)  # what it warns of is told below
    try:
        found = inspection(planned(composed, options.stage), options.stage, options.n)
    finally:
        log.setLevel(level)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(inspection_text(found, color=_in_color()))
    return 0


def _score(options: argparse.Namespace) -> int:
    from sft_lab.evaluation.scoring import BENCHMARKS, check_out, grade_file

    benchmark = options.benchmark.lower().replace("-", "_")
    if benchmark not in BENCHMARKS:
        raise RequestError(
            f"score knows no benchmark {options.benchmark!r}; there are {', '.join(BENCHMARKS)}."
        )
    if options.out is not None:
        check_out(options.out, options.problems, options.completions)
    graded = grade_file(
        benchmark,
        options.problems,
        options.completions,
        sandbox=options.sandbox,
        model=options.model,
    )
    if options.out is not None:
        graded.write(options.out)
    print(json.dumps(graded.to_json(), indent=2) if options.json else graded.table())
    return 0


def _compare(options: argparse.Namespace) -> int:
    from sft_lab.commands.compare import as_json, compare
    from sft_lab.commands.compare_text import report
    from sft_lab.runs.store import RunStore

    if options.items < 0:
        raise RequestError(f"--items must be 0 or more, got {options.items}.")
    compared = compare(
        RunStore(options.tracking_uri),
        options.runs,
        options.reference,
        options.over_seeds,
        options.allow_different_protocols,
    )
    if options.json:
        print(json.dumps(as_json(compared), indent=2, ensure_ascii=False))
    else:
        print(report(compared, options.items, color=_in_color()))
    return 0


def _study(options: argparse.Namespace) -> int:
    from sft_lab.study.outcome import outcome_json, outcome_table
    from sft_lab.study.plan import plan_table, study_plan
    from sft_lab.study.study import lay_out, print_commands, run_study, searches_left_out

    if options.print and options.json:
        raise RequestError("--print writes commands for a shell, not JSON; leave out one of them.")
    study = lay_out(options.rest, with_cost=options.plan)
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
    as_json = options.json
    print(json.dumps(outcome_json(outcome), indent=2) if as_json else outcome_table(outcome))
    return 0 if outcome.is_complete else 1


def _report(options: argparse.Namespace) -> int:
    from sft_lab.commands.report import make_report
    from sft_lab.runs.store import RunStore

    store = RunStore(options.tracking_uri)
    page = make_report(store, options.study, options.out, represented=options.represent)
    print(f"report written to {page}", file=sys.stderr)
    return 0


def _export(options: argparse.Namespace) -> int:
    from sft_lab.commands.export import export

    export(options.ckpt_path, options.out, options.what)
    print(f"{options.what} written to {options.out}", file=sys.stderr)
    return 0


def _represent(options: argparse.Namespace) -> int:
    from sft_lab.commands.represent import represent, write
    from sft_lab.paths import make_folder
    from sft_lab.report.representation_figure import caption
    from sft_lab.runs.store import RunStore
    from sft_lab.terminal import silence

    silence()
    make_folder("--out", options.out)
    found = represent(
        RunStore(options.tracking_uri),
        options.run,
        stage=options.stage,
        layer=options.layer,
        num_queries=options.num_queries,
        perplexity=options.perplexity,
        seed=options.seed,
    )
    write(found, options.out)
    print(caption(found))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from sft_lab.commands.doctor import report

    findings = report(options.tracking_uri)
    if options.json:
        print(json.dumps(dict(findings), indent=2))
    else:
        print("\n".join(f"{name:<16}{finding}" for name, finding in findings))
    return 0


def _world(options: argparse.Namespace) -> int:
    from sft_lab.paths import make_folder
    from sft_lab.world.build import build

    make_folder("--out", options.out)
    chosen = {"seed": options.seed, "num_tokens": options.tokens}
    build(options.out, **{key: value for key, value in chosen.items() if value is not None})
    return 0
