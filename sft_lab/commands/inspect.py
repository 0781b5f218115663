"""The command ``inspect``: what a config trains on, down to the sample, without loading a model."""

import logging

from sft_lab.commands.arguments import add_json, command_parser, in_color, number
from sft_lab.commands.imports import quick_imports
from sft_lab.config.ranges import NonNegativeInt
from sft_lab.errors import RequestError
from sft_lab.launch.early import check_early
from sft_lab.terminal import silence, to_json


def main(arguments: list[str]) -> int:
    """Print what a config trains on."""
    parser = command_parser(
        "inspect", usage="sft-lab inspect --config C [--KEY VALUE ...] [--stage S] [-n N] [--json]"
    )
    parser.add_argument("--stage", metavar="S", help="this stage only")
    parser.add_argument(
        "-n",
        type=number(NonNegativeInt),
        default=1,
        metavar="N",
        help="samples per source and stage; default: %(default)s",
    )
    add_json(parser)
    options, rest = parser.parse_known_args(arguments)
    request = check_early(rest, "inspect", own=("--stage", "--json"))

    with quick_imports():
        from sft_lab.commands.inspect_text import inspection_text
        from sft_lab.commands.inspection import inspection
        from sft_lab.launch.build import plan_data
        from sft_lab.launch.parser import parse_request
        from sft_lab.model.coverage import coverage

    silence()
    log = logging.getLogger("sft_lab.data")
    level = log.level
    log.setLevel(logging.ERROR)  # what it warns about is printed as part of the inspection
    try:
        config = parse_request(request)
        data = plan_data(config, options.stage)
        found = inspection(data, options.stage, options.n)
        settings = config.model_settings
        try:
            adapted = coverage(settings.base, settings.quantization, settings.adapters)
            found["model"] = adapted.to_json()
        except RequestError as fault:  # the data need a tokenizer only
            found["model"] = {"error": str(fault)}
    finally:
        log.setLevel(level)
    if options.json:
        print(to_json(found))
    else:
        print(inspection_text(found, color=in_color()))
    return 0
