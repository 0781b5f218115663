"""Every key of a config does something: another value changes the run, or is refused."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_lab import CONFIGS, TINY

from sft_lab.config.compose import dump
from sft_lab.errors import RequestError
from sft_lab.launch.parser import FOLLOWING_KEYS, MANAGED_TRAINER_ARGS, parse_files

WORLD = "sft_lab.evaluation.benchmarks.world"
SOURCE = {
    "path": "other.jsonl",
    "format": "alpaca",
    "split": "test",
    "subset": "main",
    "data_files": "a.jsonl",
    "where": "correct",
    "include": ["a"],
    "exclude": ["a"],
    "duplicates": "drop",
    "near_duplicates": 0.5,
}
STAGE = {
    "total": "1/2",
    "temperature": 2.0,
    "max_steps": 3,
    "max_tokens": 1000,
    "lr_schedule": "constant",
    "optimizer": "keep",
    "hand_over": {"class_path": "sft_lab.training.hand_over.Continue"},
    "loss": [{"class_path": "sft_lab.training.loss.LossTerm"}],
}
OTHERS: dict[str, Any] = {
    "trainer.accelerator": "cpu",
    "trainer.strategy": "ddp",
    "trainer.precision": "64-true",
    "trainer.logger.class_path": "lightning.pytorch.loggers.CSVLogger",
    "trainer.logger.init_args.tracking_uri": "sqlite:///other.db",
    "trainer.logger.init_args.experiment_name": "other",
    "trainer.logger.init_args.artifact_location": "other",
    "trainer.logger.init_args.run_name": "other",
    "trainer.logger.init_args.run_id": "other",
    "trainer.logger.init_args.tags": {"a": "b"},
    "trainer.callbacks": {"class_path": "lightning.pytorch.callbacks.Timer"},
    "trainer.max_time": "00:00:01:00",
    "trainer.enable_checkpointing": False,
    "trainer.gradient_clip_algorithm": "value",
    "trainer.deterministic": True,
    "trainer.benchmark": True,
    "trainer.profiler": "simple",
    "trainer.plugins": {"class_path": "lightning.pytorch.plugins.DoublePrecision"},
    "trainer.default_root_dir": "other",
    "trainer.model_registry": "other",
    "model.base": "other",
    "model.quantization": "bf16",
    "model.dequantize": "cached",
    "model.lora.target_modules": "q_proj",
    "model.optimizer": "paged_adamw_8bit",
    "model.evaluation": {},
    "model.seed": 7,
    "data.seed": 7,
    "corpus.seed": 7,
    "checkpoint.dirpath": "other",
    "data.order": "random",
    "data.k": "1/2",
    "data.guard": {"stage": "second", "limits": {"math": 0.1}},
    "data.corpus": {},
    "data.evaluation": {},
    "corpus.template": "alpaca",
    "corpus.too_long": "cut",
    "corpus.contamination": "drop",
    "corpus.tokenizer": "other",
    "evaluation.benchmarks.world_math.class_path": f"{WORLD}.WorldCode",
    "evaluation.benchmarks.world_math.init_args.path": "other.jsonl",
    "evaluation.benchmarks.world_math.init_args.source": "general",
    "evaluation.weights": "merged",
    "evaluation.engine": "transformers_continuous",
    "evaluation.vllm": {"url": "http://localhost:1"},
    "evaluation.decoding": {"world_math": {"temperature": 0.5}},
    "evaluation.budget": "10%",
    "evaluation.primary": {"math": "world_math/accuracy"},
    "ckpt_path": "last",
    **{f"corpus.sources.{name}.{k}": v for name in ("math", "general") for k, v in SOURCE.items()},
    **{f"data.stages.{name}.{k}": v for name in ("first", "second") for k, v in STAGE.items()},
    "data.stages.second.mixture.math": "1/8",
}


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}{key}.")
    else:
        yield prefix[:-1], value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key as a config; one file is merged faster than a hundred flags."""
    config: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        place = config
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return config


def other(key: str, value: Any) -> Any:
    """Return another value of a key; a key without a rule must be in ``OTHERS``."""
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 + 0.01
    return (value or 0) + 1


def test_every_key_changes_the_run_or_is_refused(
    tmp_path: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_LAB_WORLD", str(tiny_world))
    (tmp_path / "tiny.yaml").write_text(TINY.format(configs=CONFIGS))
    files = [str(tmp_path / "tiny.yaml")]
    others = [str(tmp_path / "other.yaml")]
    before = dict(leaves(parse_files(files, {}).plain))
    keys = [*before, *(key for key in FOLLOWING_KEYS if key not in before)]
    asked = {key: other(key, before.get(key)) for key in keys}
    # A key below or above another is tried alone, and so is what changes the kind of others.
    alone = [key for key in asked if key.endswith((".class_path", ".mixture.math"))]
    managed = {f"trainer.{name}" for name in MANAGED_TRAINER_ARGS}  # refused by a test of their own
    refused: dict[str, str] = {}
    batches = [{key: asked.pop(key)} for key in alone]
    batches.append({key: value for key, value in asked.items() if key not in managed})
    for batch in batches:
        while batch:
            try:
                (tmp_path / "other.yaml").write_text(dump(nested(batch)))
                after = dict(leaves(parse_files([*files, *others], {}).plain))
            except RequestError as fault:
                named = [key for key in batch if key in str(fault)] or [*batch][: len(batch) == 1]
                if not named:
                    pytest.fail(f"This names no key: {fault}")
                key = max(named, key=len)
                refused[key] = str(fault)
                del batch[key]
                continue
            ignored = [key for key in batch if after.get(key) == before.get(key)]
            ignored = [key for key in ignored if not any(k.startswith(f"{key}.") for k in after)]
            assert not ignored
            break
    assert {key for key in FOLLOWING_KEYS if key not in refused} == set()


@pytest.mark.parametrize("key", ["model.seed", "data.seed", "corpus.seed"])
def test_a_seed_that_follows_is_refused_where_it_was_written(tmp_path: Path, key: str) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.format(configs=CONFIGS))
    files = [str(tmp_path / "tiny.yaml")]
    with pytest.raises(RequestError, match=rf"--{key} follows from seed_everything, got 7; "):
        parse_files(files, {key: 7})
    assert parse_files(files, {key: 7, "seed_everything": 7}).seed == 7
