"""The command ``generate``: a stage's answers to the rows of a file."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.commands.arguments import add_decoding, add_tracking_uri, command_parser, number
from sft_lab.config.ranges import PositiveInt
from sft_lab.data.row_files import file_rows
from sft_lab.errors import RequestError
from sft_lab.paths import check_folder
from sft_lab.terminal import silence

if TYPE_CHECKING:
    from sft_lab.data.conversation import Message


def main(arguments: list[str]) -> int:
    """Write every row of a file with its completion."""
    parser = command_parser("generate")
    parser.add_argument("stage", metavar="RUN[@STAGE]", help="by default the last that has ended")
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="F",
        help="JSONL or Parquet; a row has messages, or a prompt",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="O", help="a new JSONL file")
    parser.add_argument(
        "--batch_size", type=number(PositiveInt), default=16, metavar="N", help="default: 16"
    )
    add_decoding(parser)
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)
    if options.out.exists():
        raise RequestError(f"--out {options.out} already exists; name a new file.")
    check_folder("--out", options.out.parent)
    rows, chats = [], []
    for place, row, _ in file_rows("--prompts", options.prompts):
        rows.append(row)
        chats.append(chat_of(row, f"--prompts {options.prompts}, {place}"))
    if not rows:
        raise RequestError(f"--prompts {options.prompts} has no rows.")

    from sft_lab.runs.stages import find_stage
    from sft_lab.runs.store import RunStore

    store = RunStore(options.tracking_uri)
    stage = find_stage(store, options.stage)
    silence()

    from sft_lab.commands.speaker import Speaker
    from sft_lab.evaluation.generation import Decoding

    decoding = Decoding(options.temperature, options.top_p, seed=options.seed)
    speaker = Speaker.of_stage(store, stage, options.batch_size)
    answers = speaker.answer(chats, decoding, options.max_new_tokens)
    part = options.out.with_name(f".{options.out.name}.{os.getpid()}")
    with part.open("x", encoding="utf-8") as out:
        for row, found in zip(rows, answers, strict=True):
            reasoning = {"reasoning": found.reasoning} if found.reasoning else {}
            out.write(json.dumps({**row, "completion": found.answer, **reasoning}) + "\n")
    os.replace(part, options.out)
    print(f"{len(rows):,} answers of {stage.label} written to {options.out}", file=sys.stderr)
    return 0


def chat_of(row: Mapping[str, Any], where: str) -> "list[Message]":
    """Return the conversation that a row asks to be continued.

    Args:
        row: It has ``prompt``, or ``messages`` that end with the user's turn.
        where: The row's place, for errors.

    Raises:
        RequestError: If it has neither.
    """
    if isinstance(row.get("prompt"), str):
        return [{"role": "user", "content": row["prompt"]}]
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise RequestError(
            f"{where}: expected a text under 'prompt', or under 'messages' a list of role and "
            f"content; got {dict(row)!r:.80}."
        )
    if messages[-1]["role"] != "user":
        raise RequestError(
            f"{where}: 'messages' must end with the user's turn, got {messages[-1]['role']!r}."
        )
    return messages


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )
