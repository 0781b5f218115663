"""The help of commands that read a run's config: one screen, from the flags' one definition."""

import textwrap
from collections.abc import Iterable

from sft_lab.commands.main import COMMANDS
from sft_lab.launch.keys import GROUP_CLASSES, flags_of

_GROUP_TEXTS = {
    "model": "base, quantization, LoRA, optimizer",
    "corpus": "sources and their rows, chat template, max_length",
    "data": "stages: mixture, epochs, lr; k, batch sizes, packing",
    "evaluation": "benchmarks, how often, engine, decoding",
    "checkpoint": "where and how often",
    "trainer": "Lightning's Trainer: devices, precision, logger",
}
_NOTES = {
    "validate": "Selection items are those by which a guard, a search or you choose; scores to "
    "report come from `sft-lab test`, on the report items, by which nothing was chosen. "
    "evaluation.split divides them; without it both commands score all items.",
    "test": "Report items are those by which nothing was chosen; to choose settings, score the "
    "selection items with `sft-lab validate`. evaluation.split divides them; without it both "
    "commands score all items.",
}
_WIDTH, _INDENT = 79, 26


def asks_for_help(arguments: list[str], command: str) -> bool:
    """Print a command's short help if it is asked for."""
    if not {"-h", "--help"}.intersection(arguments):
        return False
    print(short_help(command))
    return True


def wants_every_key(arguments: list[str]) -> list[str]:
    """Return arguments in which ``--help_all`` is what the parser knows as ``--help``."""
    return ["--help"] if "--help_all" in arguments else arguments


def short_help(command: str) -> str:
    """Return the help of ``fit``, ``validate`` or ``test`` on one screen."""
    flags = [
        ("--config FILE", "a run's YAML file; repeatable, later ones win key by key"),
        ("--KEY VALUE", "override one key: --data.k 1/4 --model.lora.r 8"),
        *((f"{flag.name} {flag.value}".strip(), flag.text) for flag in flags_of(command)),
    ]
    description = COMMANDS[command]
    parts = [
        f"usage: sft-lab {command} --config FILE [--KEY VALUE ...] [flags]",
        f"{description[0].upper()}{description[1:]}.",
        *([textwrap.fill(_NOTES[command], _WIDTH)] if command in _NOTES else []),
        "\n".join(_entries(flags)),
        "keys begin with:\n" + "\n".join(_entries((g, _GROUP_TEXTS[g]) for g in _GROUP_TEXTS)),
        f"for instance: sft-lab {command} --config configs/world/dmt.yaml",
    ]
    assert set(_GROUP_TEXTS) == set(GROUP_CLASSES)
    return "\n\n".join(parts)


def _entries(entries: Iterable[tuple[str, str]]) -> list[str]:
    return [
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=f"  {name:<{_INDENT - 2}}",
            subsequent_indent=" " * _INDENT,
            break_on_hyphens=False,
        )
        for name, text in entries
    ]
