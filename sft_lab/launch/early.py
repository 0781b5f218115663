"""Check a request in under a second, before torch is imported: keys, ranges, files, variables.

What passes here is checked again, against the classes themselves, by ``parse`` and ``build``.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sft_lab.config.check import check_config
from sft_lab.config.compose import without_machine
from sft_lab.config.signatures import Unimported, arguments_of, unimported
from sft_lab.data.row_files import RowFiles
from sft_lab.data.sources import Source
from sft_lab.errors import RequestError, nearest
from sft_lab.evaluation.sandbox.sandbox import start_trial
from sft_lab.hub import commit_of
from sft_lab.launch.keys import (
    GROUP_CLASSES,
    TOP_KEYS,
    TRAINER_RANGES,
    Request,
    flags_of,
    read_request,
)
from sft_lab.paths import is_hub_name, pinned, resolve, unpinned
from sft_lab.runs.store import RunStore, parse_fork
from sft_lab.training.shares import parse_share


def check_early(arguments: Sequence[str], command: str, own: Sequence[str] = ()) -> Request:
    """Refuse what needs no model to be refused; try the sandbox while libraries are imported.

    Args:
        arguments: As for ``parse``.
        command: The command.
        own: Flags that the command has read already, to name the nearest one.

    Returns:
        The request.

    Raises:
        RequestError: Naming the key, file, flag or variable, and the fix.
    """
    request = read_request(arguments, command)
    _check_flags(request.rest, command, own)
    with without_machine():
        check_config(request.written, group_types(), TOP_KEYS, TRAINER_RANGES, unimported)
        whole = request.written.resolved()
    _check_files(whole)
    _check_peft(whole)
    if "--print_config" not in request.rest:
        _check_hub(whole, needs_base=command != "inspect")
        if any(_is_isolated(values) for _, values in _entries(whole, "evaluation", "benchmarks")):
            start_trial()
    if "--plan" in request.rest:  # which takes neither a checkpoint nor a parent
        return request
    checkpoint = whole.get("ckpt_path") or _value_of("--ckpt_path", request.rest)
    if checkpoint and (command != "fit" or checkpoint != "last"):
        check_checkpoint_file(Path(str(checkpoint)))
    if parent := whole.get("from") or _value_of("--from", request.rest):
        _check_parent(str(parent), whole)
    return request


def group_types() -> dict[str, Any]:
    """Return what stands in for the class of each group of keys."""
    return {name: type(name, (Unimported,), {"path": path}) for name, path in GROUP_CLASSES.items()}


def check_checkpoint_file(path: Path, option: str = "--ckpt_path") -> None:
    """Refuse a checkpoint that does not exist."""
    if not path.is_file():
        raise RequestError(f"{option} {path}: no such file; give a .ckpt file, or last with fit.")


def _check_flags(rest: Sequence[str], command: str, own: Sequence[str]) -> None:
    """Refuse a flag that is unknown, and name the nearest one."""
    flags = {flag.name: flag.text for flag in flags_of(command)}
    known = [*flags, *own, *(f"--{key}" for key in GROUP_CLASSES), "--seed_everything", "--config"]
    for argument in rest:
        name = argument.partition("=")[0]
        if flags.get(name, "").startswith("with --plan") and "--plan" not in rest:
            raise RequestError(
                f"{name} needs --plan, which trains nothing; add it or leave out {name}."
            )
        if not name.startswith("--") or name in known or name.endswith(".help"):
            continue
        head, dot, key = name.partition(".")
        near = difflib.get_close_matches(head, known, n=1)
        fix = f"did you mean {near[0]}{dot}{key}?" if near else f"see sft-lab {command} --help."
        raise RequestError(f"unknown flag {name}; {fix}")


def _value_of(flag: str, rest: Sequence[str]) -> str | None:
    for index, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else next(iter(rest[index + 1 :]), None)
    return None


def _check_files(whole: Mapping[str, Any]) -> None:
    """Refuse files of sources and benchmarks that do not exist; hub names are left to the hub."""
    for name, values in _entries(whole, "corpus", "sources"):
        try:
            source = Source(**values)
        except TypeError:  # worded by the parser
            continue
        if isinstance(source.path, str):
            source.row_files(name).files()
    for name, values in _entries(whole, "evaluation", "benchmarks"):
        arguments = values.get("init_args")
        path = arguments.get("path") if isinstance(arguments, Mapping) else None
        is_ours = str(values.get("class_path")).startswith("sft_lab.")
        if is_ours and isinstance(path, str):
            RowFiles(f"evaluation.benchmarks.{name}.init_args.path", path).files()


def _check_hub(whole: Mapping[str, Any], *, needs_base: bool) -> None:
    """Refuse hub names that neither the hub nor its cache has; a process asks for each once."""
    model, corpus = whole.get("model") or {}, whole.get("corpus") or {}
    base, tokenizer = model.get("base"), corpus.get("tokenizer")
    if isinstance(base, str) and (needs_base or tokenizer is None):
        name, revision = unpinned(resolve(pinned(base, model.get("revision"))))
        if is_hub_name(name):
            commit_of("model.base", name, "model", revision)
    mixtures = [stage.get("mixture") or {} for _, stage in _entries(whole, "data", "stages")]
    for name, values in _entries(whole, "corpus", "sources"):
        shares = [parse_share(mixture[name]) for mixture in mixtures if name in mixture]
        if any(share.amount > 0 for share in shares):
            with suppress(TypeError):  # worded by the parser
                Source(**values).row_files(name).commit()


def _is_isolated(benchmark: Mapping[str, Any]) -> bool:
    """Return whether a benchmark of ours runs programs in a sandbox that is tried first."""
    owner = unimported(str(benchmark.get("class_path")))
    arguments = arguments_of(owner) if owner is not None else None
    given = benchmark.get("init_args") or {}
    return (
        arguments is not None and "sandbox" in arguments.hints and given.get("sandbox") != "limited"
    )


def _check_peft(whole: Mapping[str, Any]) -> None:
    """Refuse a config class that PEFT does not have, by its source: its import takes seconds."""
    peft = (whole.get("model") or {}).get("peft")
    path = peft.get("class_path") if isinstance(peft, Mapping) else None
    spec = find_spec("peft")
    if not str(path).startswith("peft.") or spec is None or spec.origin is None:
        return
    name = str(path).removeprefix("peft.")
    known = sorted(set(re.findall(r"\b\w+Config\b", Path(spec.origin).read_text("utf-8"))))
    if "." not in name and name not in known:
        raise RequestError(
            f"model.peft.class_path: PEFT has no config class {path}{nearest(name, known)}; name "
            "one that it has, such as peft.LoraConfig."
        )


def _check_parent(parent: str, whole: Mapping[str, Any]) -> None:
    """Refuse a run to start from that is not in the store."""
    run, _ = parse_fork(parent)
    logger = (whole.get("trainer") or {}).get("logger")
    arguments = logger.get("init_args") if isinstance(logger, Mapping) else None
    if isinstance(arguments, Mapping) and isinstance(arguments.get("tracking_uri"), str):
        RunStore(arguments["tracking_uri"]).check_known(run)


def _entries(whole: Mapping[str, Any], group: str, key: str) -> list[tuple[str, Any]]:
    above = whole.get(group)
    found = above.get(key) if isinstance(above, Mapping) else None
    if not isinstance(found, Mapping):
        return []
    return [(name, values) for name, values in found.items() if isinstance(values, Mapping)]
