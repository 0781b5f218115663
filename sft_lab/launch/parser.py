"""Parse a run's arguments: ``parse(arguments) -> RunConfig``, for every command that reads one."""

import difflib
import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from sft_lab.callbacks.run_checkpoint import RunCheckpoint
from sft_lab.config.check import check_config
from sft_lab.config.compose import Composed, compose_files
from sft_lab.config.ranges import Seed
from sft_lab.config.signatures import imported
from sft_lab.data.corpus import Corpus
from sft_lab.errors import RequestError, nearest
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.launch.devices import check_devices
from sft_lab.launch.explain import explain
from sft_lab.launch.keys import (
    GROUP_CLASSES,
    TOP_KEYS,
    TRAINER_RANGES,
    Request,
    flags_of,
    read_request,
)
from sft_lab.launch.run_config import RunConfig, read_adapters
from sft_lab.launch.sharding import check_sharded
from sft_lab.model.adapter_config import Peft
from sft_lab.model.sharding import FSDP
from sft_lab.paths import pinned
from sft_lab.training.data_modules import StagedDataModule, micro_batches_per_step
from sft_lab.training.module import SFTModule, check_trainable

log = logging.getLogger(__name__)

GROUPS: dict[str, Any] = {name: imported(path) for name, path in GROUP_CLASSES.items()}
_TRAINER_DEFAULTS = {
    "reload_dataloaders_every_n_epochs": 1,
    "max_epochs": -1,  # StageScheduler sets it: the passes of all stages
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
MANAGED_TRAINER_ARGS = {
    "max_epochs": "data.stages.*.epochs",
    "max_steps": "data.stages.*.max_steps",
    "max_time": "data.stages.*.max_steps",
    "limit_train_batches": "data.stages.*.max_steps",
    "overfit_batches": "data.stages.*.mixture",
    "fast_dev_run": "data.stages.*.max_steps",
    "reload_dataloaders_every_n_epochs": "data.stages",
    "accumulate_grad_batches": "data.micro_batch_size",
    "limit_val_batches": "evaluation.benchmarks.*.init_args.num_examples",
    "limit_test_batches": "evaluation.benchmarks.*.init_args.num_examples",
    "val_check_interval": "evaluation.every_n_steps",
    "check_val_every_n_epoch": "evaluation.every_n_steps",
    "num_sanity_val_steps": "evaluation.every_n_steps",
}
"""Trainer arguments that would contradict the lab's own, and the key to set instead."""


FOLLOWING_KEYS = {
    "model.seed": "seed_everything",
    "data.seed": "seed_everything",
    "corpus.seed": "seed_everything",
    "data.corpus": "corpus",
    "data.evaluation": "evaluation",
    "model.evaluation": "evaluation",
}
"""Keys that another one decides."""


def parse(arguments: Sequence[str], command: str = "fit") -> RunConfig:
    """Parse the arguments of a command that reads a run's config; nothing is built or written.

    Args:
        arguments: ``--config FILE`` (repeatable), dotted overrides, and the command's own flags.
        command: ``fit``, ``validate`` or ``test``; they differ in their flags only.

    Raises:
        RequestError: If a key or value is wrong, naming it, where it was written, and the fix.
    """
    return parse_request(read_request(arguments, command), command)


def parse_request(request: Request, command: str = "fit") -> RunConfig:
    """Parse arguments whose files have been read, as in ``parse``."""
    return parse_written(request.written, command, request.rest, request.strategy)


def parse_files(
    files: Sequence[str], overrides: Mapping[str, Any], flags: Sequence[str] = ()
) -> RunConfig:
    """Parse the config of ``fit`` from files and values by dotted key, as in ``parse``."""
    return parse_written(compose_files(files, overrides), "fit", flags, Path(files[0]).stem)


def parse_recorded(config: Mapping[str, Any]) -> RunConfig:
    """Parse the resolved config of a recorded run, which was checked when the run started."""
    written = OmegaConf.create(dict(config))
    assert isinstance(written, DictConfig)
    return parse_written(Composed(written), "fit", [], "custom", check=False)


def parse_written(
    written: Composed, command: str, flags: Sequence[str], strategy: str, *, check: bool = True
) -> RunConfig:
    """Parse a merged config together with flags that are not part of it, as in ``parse``."""
    check_config(written, GROUPS, TOP_KEYS, TRAINER_RANGES)
    whole = written.resolved()
    if command != "fit":
        whole.pop("from", None)  # a config printed by fit holds it
    _choose_tokenizer(whole)
    _choose_adapters(whole)
    parser = run_parser(command)
    try:
        if flags:  # --help, --print_config, --key+=value, --ckpt_path, --from
            # As JSON, which quotes the text that YAML would read as a number.
            config = ["--config", json.dumps(whole)] if whole else []
            values = parser.parse_args([*config, *flags])
        else:
            values = parser.parse_object(whole)
    except ArgumentError as fault:
        raise RequestError(explain(str(fault), written)) from fault
    # Twenty times as fast as dumping YAML, with the same values.
    options = {"skip_link_targets": False, "skip_unset": False, "skip_validation": True}
    plain = json.loads(parser.dump(values, format="json_compact", **options))
    plain.pop("from", None)  # recorded as a tag: a config must not fork again
    if check:
        _check(plain, values, written)
    return RunConfig(
        command=command,
        values=values,
        plain=plain,
        written=written,
        strategy=strategy,
        ckpt_path=values.ckpt_path,
        fork_from=values["from"] if command == "fit" else None,
    )


@cache
def run_parser(command: str = "fit") -> ArgumentParser:
    """Return the parser of a run's whole config; made once, since that takes a second."""
    parser = ArgumentParser(
        prog=f"sft-lab {command}",
        usage=f"sft-lab {command} --config FILE [--KEY VALUE ...]",
        exit_on_error=False,
        default_env=False,
    )
    texts = {flag.name: flag for flag in flags_of(command)}
    parser.add_argument("-c", "--config", action="config", help="a run's YAML file; repeatable")
    parser.add_argument("--seed_everything", type=Seed, default=0, help="seed of the whole run")
    parser.add_class_arguments(
        Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True
    )
    parser.set_defaults({f"trainer.{key}": value for key, value in _TRAINER_DEFAULTS.items()})
    parser.add_class_arguments(SFTModule, "model")
    parser.add_class_arguments(RunCheckpoint, "checkpoint")
    _add_data_groups(parser)
    parser.link_arguments("evaluation", "model.evaluation", apply_on="instantiate")
    parser.link_arguments("seed_everything", "model.seed")
    parser.link_arguments(
        ("data.batch_size", "data.micro_batch_size"),
        "trainer.accumulate_grad_batches",
        compute_fn=micro_batches_per_step,
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        metavar=texts["--ckpt_path"].value,
        help=texts["--ckpt_path"].text,
    )
    if command == "fit":
        parser.add_argument(
            "--from",
            type=str | None,
            metavar=texts["--from"].value,
            help=texts["--from"].text,
        )
    return parser


@cache
def data_parser() -> ArgumentParser:
    """Return a parser of the groups that data are made from, to build them without a model."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int, default=0)
    _add_data_groups(parser)
    return parser


def _add_data_groups(parser: ArgumentParser) -> None:
    """Add corpus, evaluation and data to a parser that has ``seed_everything``."""
    parser.add_class_arguments(StagedDataModule, "data")
    parser.add_class_arguments(Corpus, "corpus")
    parser.add_class_arguments(EvaluationSuite, "evaluation")
    parser.link_arguments("corpus", "data.corpus", apply_on="instantiate")
    parser.link_arguments("evaluation", "data.evaluation", apply_on="instantiate")
    for group in ("data", "corpus"):
        parser.link_arguments("seed_everything", f"{group}.seed")


def _choose_tokenizer(whole: dict[str, Any]) -> None:
    """Set ``corpus.tokenizer`` to the base where it was left out."""
    corpus, model = whole.get("corpus"), whole.get("model")
    if isinstance(corpus, dict) and isinstance(model, Mapping) and "base" in model:
        base = str(model["base"])
        corpus.setdefault("tokenizer", pinned(base, model.get("revision")))


def _choose_adapters(whole: dict[str, Any]) -> None:
    """Drop the default of ``model.lora`` where ``model.peft`` is given."""
    model = whole.get("model")
    if isinstance(model, dict) and model.get("peft") is not None:
        model.setdefault("lora", None)


def _check(plain: Mapping[str, Any], values: Namespace, written: Composed) -> None:
    """Check what the types of arguments leave open, as far as any machine can.

    Raises:
        RequestError: Naming the key and the fix.
    """
    _check_followers(plain, written)
    if "trainer" in written.config:  # without it only the data are read
        _check_trainer(values, written)
    _check_sources(plain, written)
    model = plain["model"]
    adapters = read_adapters(model)
    if isinstance(adapters, Peft):
        adapters.config()
    check_trainable(model["quantization"], adapters, model["dequantize"])
    if plain["trainer"]["strategy"] == FSDP:
        check_sharded(plain)
    RunCheckpoint(**plain["checkpoint"])


def _check_sources(plain: Mapping[str, Any], written: Composed) -> None:
    known = plain["corpus"]["sources"]
    for name, benchmark in plain["evaluation"]["benchmarks"].items():
        source = benchmark.get("init_args", {}).get("source")
        if source is None or source in known:
            continue
        key = f"evaluation.benchmarks.{name}.init_args.source"
        if difflib.get_close_matches(source, known, n=1, cutoff=0.8):
            raise RequestError(
                f"{written.where(key)}: unknown source {source!r}{nearest(source, known)}; "
                f"corpus.sources has {', '.join(known)}."
            )
        # Benchmarks are shared by runs whose corpora hold more sources or fewer.
        log.warning(f"{key}: corpus.sources has no {source!r}, so no stage trains this ability.")


def _check_followers(plain: Mapping[str, Any], written: Composed) -> None:
    """Refuse keys that follow from others; the parser has replaced their values."""
    whole = written.resolved()
    for key, instead in FOLLOWING_KEYS.items():
        group, name = key.split(".")
        given = whole.get(group, {})
        if name in given and (name not in plain[group] or given[name] != plain[group][name]):
            raise RequestError(
                f"{written.where(key)} follows from {instead}, got {given[name]}; leave it out and "
                "set that."
            )


def _check_trainer(values: Namespace, written: Composed) -> None:
    given = written.resolved().get("trainer", {})
    signature = inspect.signature(Trainer).parameters
    for name, instead in MANAGED_TRAINER_ARGS.items():
        # The parser has replaced the value of a linked key by its own.
        is_linked = name == "accumulate_grad_batches"
        decided = (
            values.trainer[name]
            if is_linked
            else _TRAINER_DEFAULTS.get(name, signature[name].default)
        )
        if name in given and given[name] != decided:
            key = f"trainer.{name}"
            raise RequestError(
                f"{written.where(key)} follows from {instead}, got {given[name]}; "
                "leave it out and set that."
            )
    sizes = values.data.batch_size, values.data.micro_batch_size
    check_devices(values.trainer.as_dict(), *sizes)
