"""Parse a run's config."""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning import Trainer
from omegaconf import OmegaConf

from sft_lab.callbacks.run_checkpoint import RunCheckpoint
from sft_lab.config.compose import Composed
from sft_lab.config.keys import check_keys
from sft_lab.data.corpus import Corpus
from sft_lab.errors import RequestError
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.model.size import ModelSettings
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.module import SFTModule

GROUPS: dict[str, Any] = {
    "trainer": Trainer,
    "model": SFTModule,
    "corpus": Corpus,
    "evaluation": EvaluationSuite,
    "data": StagedDataModule,
    "checkpoint": RunCheckpoint,
}


RUN_KEYS = (*GROUPS, "seed_everything")
"""First parts of the keys that can be overridden on the command line."""

TOP_KEYS = ["seed_everything", "ckpt_path", "weights_only", "from"]


_DECIDED_ELSEWHERE = {
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
"""Keys of the Trainer that would contradict the lab's own, and the key to set instead."""


def add_data_arguments(parser: ArgumentParser) -> None:
    """Add to a parser that has ``model.base`` and ``data`` what the data are made from."""
    parser.add_class_arguments(Corpus, "corpus")
    parser.add_class_arguments(EvaluationSuite, "evaluation")
    parser.link_arguments("corpus", "data.corpus", apply_on="instantiate")
    parser.link_arguments("evaluation", "data.evaluation", apply_on="instantiate")
    parser.link_arguments("model.base", "corpus.tokenizer")
    for group in ("data", "corpus"):
        parser.link_arguments("seed_everything", f"{group}.seed")


def explain(message: str, composed: Composed) -> str:
    r"""Put the parser's message into one line, and before it where the value was written.

    >>> explain('Parser key "data.k":\n  Expected a <class \'int\'>. Got value: x', Composed())
    'data.k: Expected a int. Got value: x'
    """
    keys = re.findall(r'Parser key "([^"]+)":', message)
    text = re.sub(r'Parser key "[^"]+":', "", message)
    text = re.sub(r"Problem with given class_path '[^']+':", "", text)
    text = " ".join(re.sub(r"<class '([^']+)'>", r"\1", text).replace("typing.", "").split())
    # Of a union only the types and the value are worth a person's time.
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: (\[.*?\]) .*Given value: ",
        r"Expected one of \1. Got value: ",
        text,
    )
    text = re.sub(r"^Call to compute_fn of link .* failed: ", "", text)
    key = _written_key(keys, text, composed)
    return f"{composed.origin(key)}{key}: {text}".removeprefix(": ")


def _written_key(keys: list[str], text: str, composed: Composed) -> str:
    """Return the key of a wrong value: of a dict's entry the parser says all but its name."""
    value = text.rpartition("Got value: ")[2]
    for key in reversed(composed.origins):
        if len(keys) == 2 and key.startswith(f"{keys[0]}.") and key.endswith(f".{keys[1]}"):
            written = OmegaConf.select(composed.config, key)
            if str(written) == value:
                return key
    return ".".join(keys)


_DATA_GROUPS = ("corpus", "evaluation", "data")


def planned(composed: Composed, stage: str | None) -> StagedDataModule:
    """Read and lay out what a composed config would train on.

    Args:
        composed: The whole config of a run; of its model only the base's tokenizer is looked at.
        stage: A stage that must be among the config's, or None.

    Returns:
        The data module with every stage planned, as ``fit`` makes it.

    Raises:
        RequestError: If the config or the data are wrong, or there is no such stage.
    """
    check_keys(composed, GROUPS, TOP_KEYS)
    data = data_module(composed)
    if stage is not None and stage not in data.stages:
        raise RequestError(
            f"--stage: there is no {stage!r}; data.stages has {', '.join(data.stages)}."
        )
    data.setup("fit")
    return data


def data_module(composed: Composed) -> StagedDataModule:
    """Return the data module of a config, before anything is read.

    Args:
        composed: The whole config of a run; of its model only the base's name is looked at.

    Raises:
        RequestError: If the config is wrong.
    """
    config = composed.resolved()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_argument("--model.base", type=str)
    parser.add_class_arguments(StagedDataModule, "data")
    add_data_arguments(parser)
    chosen = {key: config[key] for key in ("seed_everything", *_DATA_GROUPS) if key in config}
    chosen["model"] = {"base": config.get("model", {}).get("base")}
    try:
        data: StagedDataModule = parser.instantiate(parser.parse_object(chosen)).data
    except ArgumentError as fault:
        raise RequestError(explain(str(fault), composed)) from fault
    return data


_DEFAULT_PRECISION = "32-true"  # Lightning's


def model_settings(config: Mapping[str, Any]) -> ModelSettings:
    """Return a resolved config's settings of the model, with the defaults of what it leaves out.

    Raises:
        RequestError: If one of them is wrong.
    """
    model = json.dumps(config.get("model", {}), sort_keys=True, default=str)
    precision = config.get("trainer", {}).get("precision")
    return _model_settings(model, _DEFAULT_PRECISION if precision is None else str(precision))


@cache  # the cells of a study mostly share them, and parsing takes longer than all the rest
def _model_settings(model: str, precision: str) -> ModelSettings:
    elsewhere = {"evaluation", "seed"}  # groups and keys that are linked to it
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SFTModule, "model", skip=elsewhere, instantiate=False)
    chosen = {key: value for key, value in json.loads(model).items() if key not in elsewhere}
    try:
        parsed = parser.instantiate(parser.parse_object({"model": chosen})).model
    except ArgumentError as fault:
        raise RequestError(explain(str(fault), Composed())) from fault
    return ModelSettings(
        base=parsed.base,
        quantization=parsed.quantization,
        lora=parsed.lora,
        gradient_checkpointing=parsed.gradient_checkpointing,
        optimizer=parsed.optimizer,
        precision=precision,
    )
