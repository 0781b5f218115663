"""``score``: grade completions of any model from a file, without loading a model."""

import json
from pathlib import Path

from sft_lab.commands.arguments import add_json, command_parser


def main(arguments: list[str]) -> int:
    """Grade a file of completions and print the scores."""
    parser = command_parser("score")
    parser.add_argument(
        "benchmark",
        metavar="BENCHMARK",
        help="gsm8k, humaneval, mbpp, ifeval, mt_bench, or the class path of another",
    )
    parser.add_argument(
        "--problems",
        metavar="P",
        help="the benchmark's own file or hub name; default: as published, from the hub",
    )
    parser.add_argument(
        "--completions",
        required=True,
        metavar="F",
        help='JSONL: {"task_id": ..., "completion": ...}',
    )
    parser.add_argument("--out", type=Path, metavar="O", help="write one JSON row per completion")
    add_json(parser)
    parser.add_argument("--model", metavar="M", help="mt_bench: the model, if the file has several")
    parser.add_argument(
        "--sandbox",
        default="isolated",
        metavar="L",
        help="for generated code: isolated, isolated_or_limited or limited; default: %(default)s",
    )
    options = parser.parse_args(arguments)

    from sft_lab.evaluation.scoring import check_out, find_benchmark, grade_file

    find_benchmark(options.benchmark)
    if options.out is not None:
        check_out(options.out, options.problems or "", options.completions)
    graded = grade_file(
        options.benchmark,
        options.problems,
        options.completions,
        sandbox=options.sandbox,
        model=options.model,
    )
    if options.out is not None:
        graded.write(options.out)
    print(json.dumps(graded.to_json(), indent=2) if options.json else graded.table())
    return 0
