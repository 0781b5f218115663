"""The command ``chat``: talk to a stage of a run, or to two side by side with the same words."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sft_lab.commands.arguments import add_decoding, add_tracking_uri, command_parser
from sft_lab.terminal import silence, visible

if TYPE_CHECKING:
    from sft_lab.data.conversation import Message

_HELP = "An empty line ends; /reset starts a new conversation."


def main(arguments: list[str]) -> int:
    """Answer one prompt, or what is typed, until the input ends."""
    parser = command_parser("chat", epilog=_HELP)
    parser.add_argument(
        "stages",
        nargs="+",
        metavar="RUN[@STAGE]",
        help="one or two; STAGE is the last that has ended by default, or base",
    )
    parser.add_argument("--prompt", metavar="P", help="print the answer to this and end")
    add_decoding(parser)
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)
    if len(options.stages) > 2:
        parser.error(f"RUN[@STAGE]: one or two, got {len(options.stages)}")

    from sft_lab.runs.stages import find_stage
    from sft_lab.runs.store import RunStore

    store = RunStore(options.tracking_uri)
    found = [find_stage(store, text) for text in options.stages]
    silence()

    from sft_lab.commands.speaker import Speaker
    from sft_lab.evaluation.generation import Decoding

    decoding = Decoding(options.temperature, options.top_p, seed=options.seed)
    speakers = [Speaker.of_stage(store, stage) for stage in found]
    labels = [stage.label for stage in found]
    chats: list[list[Message]] = [[] for _ in speakers]
    for text in [options.prompt] if options.prompt is not None else _typed():
        if text == "/reset":
            chats = [[] for _ in speakers]
            continue
        for chat in chats:
            chat.append({"role": "user", "content": text})
        answers = []
        for speaker, chat in zip(speakers, chats, strict=True):
            [answer] = speaker.answer([chat], decoding, options.max_new_tokens)
            chat.append({"role": "assistant", "content": answer.answer})
            answers.append(answer.reasoning + answer.answer)
        _show(answers, labels)
    return 0


def _typed() -> Iterator[str]:
    """Yield the lines that are typed, or given on stdin."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(_HELP)
    while True:
        try:
            text = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if not text:
            return
        yield text


def _show(answers: list[str], labels: list[str]) -> None:
    if len(answers) == 1:
        print(visible(answers[0]))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(Text(visible(label))) for label in labels), expand=True)
    table.add_row(*(Text(visible(answer)) for answer in answers))
    Console().print(table)
