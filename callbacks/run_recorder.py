"""Puts into the MLflow run what is needed later: config, plan, samples, answers, adapters."""

import hashlib
import json
import operator
import platform
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.data.batches import Prompts
from sft_lab.data.module import StagedDataModule
from sft_lab.data.plan import StagePlan
from sft_lab.machine import device_name
from sft_lab.module import Answer, SFTModule
from sft_lab.qlora import save_trained
from sft_lab.tracking import TABLES_TAG, RunLogger

_PACKAGES = ("sft_lab", "torch", "lightning", "transformers", "peft", "bitsandbytes", "mlflow")


class RunRecorder(Callback):
    """Records a run at its start, after every evaluation, and at every stage boundary.

    Args:
        config: The resolved config.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self._recorded: list[StagePlan] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        logger = trainer.logger
        if not isinstance(logger, RunLogger):
            return
        client, run_id = logger.experiment, logger.run_id
        environment = {f"version.{package}": version(package) for package in _PACKAGES}
        environment |= {
            "machine": platform.machine(),
            "device": device_name(),
            "precision": str(trainer.precision),
        }
        groups = {
            key: self.config[key]
            for key in ("seed_everything", "model", "corpus", "data", "evaluation")
        }
        # Of a run that is gone on with, the stages to come may have changed: files are written
        # again, but MLflow lets nobody change a parameter.
        standing = client.get_run(run_id).data.params
        parameters = flatten(groups) | environment
        logger.log_hyperparams({k: v for k, v in parameters.items() if k not in standing})
        client.log_text(run_id, yaml.safe_dump(dict(self.config), sort_keys=False), "config.yaml")
        if stage == "fit":
            self._record_plans(trainer, pl_module)

    def _record_plans(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """File what the stages train on, where it is not what was filed before."""
        logger = trainer.logger
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, unknown to its types
        if (
            not isinstance(logger, RunLogger)
            or not isinstance(data, StagedDataModule)
            or not isinstance(pl_module, SFTModule)
        ):
            return
        plans = [module.plan for module in data.stage_modules]
        if len(plans) == len(self._recorded) and all(map(operator.is_, plans, self._recorded)):
            return
        client, run_id = logger.experiment, logger.run_id
        plan = stage_plan(data, pl_module.generates_with)
        client.log_text(run_id, json.dumps(plan, indent=2), "stage_plan.json")
        for name in data.stages:
            client.log_text(run_id, manifest(data, name), f"samples/{name}.tsv")
            client.log_text(run_id, window_table(data, name), f"windows/{name}.tsv")
        self._recorded = plans

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Of a run that goes on, what its checkpoint has planned anew.
        self._record_plans(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = trainer.logger
        if (
            trainer.sanity_checking
            or not isinstance(logger, RunLogger)
            or not isinstance(pl_module, SFTModule)
        ):
            return
        if pl_module.last_evaluation is None:
            return
        self._record_plans(trainer, pl_module)  # a guard may have planned anew by now
        client, run_id = logger.experiment, logger.run_id
        folder = f"answers/step_{trainer.global_step:06d}"
        paths = [f"{folder}/{name}.json" for name in pl_module.last_evaluation.answers]
        for path, answers in zip(paths, pl_module.last_evaluation.answers.values(), strict=True):
            # One file an evaluation, written whole: MLflow's own log_table appends, and after a
            # kill it would append the same items again. The tag makes the page show a table.
            client.log_text(run_id, json.dumps(answers_table(answers)), path)
        tables = json.loads(client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
        tables += [{"path": path, "type": "table"} for path in paths]
        unique = {table["path"]: table for table in tables}
        client.set_tag(run_id, TABLES_TAG, json.dumps(list(unique.values())))

    on_test_end = on_validation_end

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = trainer.logger
        if (
            not isinstance(logger, RunLogger)
            or not isinstance(pl_module, SFTModule)
            or pl_module.schedule is None
        ):
            return
        for scheduled in pl_module.schedule.stages:
            if scheduled.end_step == trainer.global_step:
                with tempfile.TemporaryDirectory() as folder:
                    save_trained(pl_module.model, Path(folder))
                    logger.experiment.log_artifacts(
                        logger.run_id, folder, f"stages/{scheduled.name}"
                    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config by dotted keys, as MLflow shows parameters.

    >>> flatten({"data": {"k": "1/16"}})
    {'data.k': '1/16'}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def answers_table(answers: list[Answer]) -> dict[str, list[Any]]:
    """Return an evaluation's items in the form MLflow shows as a table."""
    marks = list(dict.fromkeys(name for a in answers for name in a.verdict.marks or ()))
    rows = [
        [
            a.item.id,
            *((a.verdict.marks or {}).get(name) for name in marks),
            a.verdict.reason,
            a.completion,
            a.item.messages[-1]["content"] if a.item.messages else a.item.text,
        ]
        for a in answers
    ]
    return {"columns": ["id", *marks, "reason", "completion", "prompt"], "data": rows}


def stage_plan(data: StagedDataModule, weights: str) -> dict[str, Any]:
    """Return what every stage trains on, by source, with the digests of sources and benchmarks.

    Args:
        data: The stages and benchmarks.
        weights: What answers the benchmarks.
    """
    num_tokens = {source: loaded.num_tokens for source, loaded in data.corpus.loaded.items()}
    num_target_tokens = {
        source: loaded.num_target_tokens for source, loaded in data.corpus.loaded.items()
    }
    prompts = {found.name: found for found in data.eval_sets if isinstance(found, Prompts)}
    return {
        "sources": {
            source: {
                "path": data.corpus.sources[source].path,
                "digest": loaded.digest,
                "rows": len(loaded.rows),
                "held_out": loaded.val_rows,
                "report": loaded.report.to_json(),
            }
            for source, loaded in data.corpus.loaded.items()
        },
        "stages": {
            name: {
                "steps": module.plan.num_steps,
                "passes": len(module.plan.passes),
                "asked": dict(settings.mixture),
                "trained": module.plan.count(num_tokens, num_target_tokens),
                "manifest_digest": hashlib.sha256(manifest(data, name).encode()).hexdigest(),
            }
            for (name, settings), module in zip(
                data.stages.items(), data.stage_modules, strict=True
            )
        },
        "benchmarks": {
            name: {
                "digest": benchmark.digest(),
                "protocol": benchmark.protocol(),
                "decoding": asdict(data.evaluation.decoding(name)),
                "weights": weights,
                "prompts": prompts[name].digest,
                "items": len(benchmark.items()),
                "turns": benchmark.turns,
                "scale": list(benchmark.scale),
                **benchmark.conditions(),
            }
            for name, benchmark in data.evaluation.benchmarks.items()
        },
    }


def window_table(data: StagedDataModule, stage_name: str) -> str:
    """Return what each optimizer step of a stage trains on, a line for every source in it."""
    plan = next(module.plan for module in data.stage_modules if module.plan.name == stage_name)
    loaded = data.corpus.loaded
    windows = plan.count_windows(
        {name: source.num_tokens for name, source in loaded.items()},
        {name: source.num_target_tokens for name, source in loaded.items()},
    )
    lines = (
        f"{step}\t{source}\t{count['samples']}\t{count['tokens']}\t{count['target_tokens']}"
        for step, counts in enumerate(windows, start=1)
        for source, count in sorted(counts.items())
    )
    return "step\tsource\tsamples\ttokens\ttarget_tokens\n" + "\n".join(lines) + "\n"


def manifest(data: StagedDataModule, stage_name: str) -> str:
    """Return the samples of a stage, a line each: source, sample id, how often it is trained."""
    plan = next(module.plan for module in data.stage_modules if module.plan.name == stage_name)
    times = Counter(plan.rows())
    lines = (
        f"{ref.source}\t{data.corpus.loaded[ref.source].sample_ids[ref.index]}\t{count}"
        for ref, count in sorted(times.items())
    )
    return "source\tsample_id\ttimes\n" + "\n".join(lines) + "\n"
