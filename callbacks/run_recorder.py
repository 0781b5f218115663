"""Files in the MLflow run what is needed later: config, plan, samples, answers."""

import json
import logging
import operator
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.callbacks.ability_history import point_of
from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.model.coverage import coverage
from sft_lab.runs.contents import answers_table, manifest, run_record, window_table
from sft_lab.runs.evaluations import evaluation_path
from sft_lab.runs.inputs import PACKAGES
from sft_lab.runs.logger import RunLogger, run_logger
from sft_lab.runs.machine import device_name, devices_text
from sft_lab.runs.record import RECORD, read_record
from sft_lab.runs.store import TABLES_TAG, RunStore
from sft_lab.runs.tags import flatten
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.module import SFTModule
from sft_lab.training.plan import StagePlan
from sft_lab.training.sharded import Sharded

_log = logging.getLogger(__name__)


class RunRecorder(Callback):
    """Records a run at its start, after every evaluation, and where its plan changes.

    Args:
        config: The resolved config.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self._recorded: list[StagePlan] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        logger = run_logger(trainer)
        client, run_id = logger.experiment, logger.run_id
        environment = {f"version.{package}": version(package) for package in PACKAGES}
        sharded = isinstance(trainer.strategy, Sharded)
        environment |= {
            "machine": platform.machine(),
            "device": device_name(),
            "devices": devices_text(trainer.world_size, sharded=sharded),
            "precision": str(trainer.precision),
        }
        groups = {
            key: self.config[key]
            for key in ("seed_everything", "model", "corpus", "data", "evaluation")
        }
        # A resumed run may have other stages to come: files are written again, but MLflow does not
        # let a parameter change.
        known = client.get_run(run_id).data.params
        parameters = flatten(groups) | environment
        logger.log_hyperparams({k: v for k, v in parameters.items() if k not in known})
        for other in trainer.loggers:
            if other is not logger:
                other.log_hyperparams({**groups, "run": logger.run_name, "run_id": run_id})
        client.log_text(run_id, yaml.safe_dump(dict(self.config), sort_keys=False), "config.yaml")
        if stage == "fit" and isinstance(pl_module, SFTModule):
            found = coverage(pl_module.base, pl_module.quantization, pl_module.adapters)
            _log.info("%s", found)
            client.log_text(run_id, json.dumps(found.to_json(), indent=2), "model.json")
        # A resumed run's plans follow from its checkpoint, which is read after this.
        if stage == "fit" and not _has_record(logger):
            self._record_plans(trainer, pl_module)

    def _record_plans(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """File what the stages train on, unless it is filed; never again of a trained stage."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, unknown to its types
        if not isinstance(data, StagedDataModule) or not isinstance(pl_module, SFTModule):
            return
        plans = [module.plan for module in data.stage_modules]
        if len(plans) == len(self._recorded) and all(map(operator.is_, plans, self._recorded)):
            return
        logger = run_logger(trainer)
        client, run_id = logger.experiment, logger.run_id
        weights = data.evaluation.engine.weights_name(pl_module.base)
        record, filed = run_record(data, weights, pl_module.base), {}
        if _has_record(logger):
            old = read_record(RunStore(logger.tracking_uri), run_id).stages
            ended = {s.name for s in data.schedule.stages if s.end_step <= trainer.global_step}
            filed = {name: stage for name, stage in old.items() if name in ended}
        stages = {name: filed.get(name, stage) for name, stage in record.stages.items()}
        client.log_text(run_id, replace(record, stages=stages).to_json(), RECORD)
        from sft_lab.runs.datasets import dataset_inputs  # MLflow, which a plan does not need

        client.log_inputs(run_id, dataset_inputs(record))
        for name in data.stages.keys() - filed.keys():
            client.log_text(run_id, manifest(data, name), f"samples/{name}.tsv")
            client.log_text(run_id, window_table(data, name), f"windows/{name}.tsv")
        self._recorded = plans

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A resumed run restores the plan changes of its checkpoint.
        self._record_plans(trainer, pl_module)

    def on_evaluation_end(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation
    ) -> None:
        """File the answers, and then the scores, of an evaluation."""
        if not isinstance(pl_module, SFTModule):
            return
        self._record_plans(trainer, pl_module)  # a guard may have changed the plan
        logger = run_logger(trainer)
        client, run_id = logger.experiment, logger.run_id
        folder = f"answers/step_{evaluation.step:06d}"
        paths = [f"{folder}/{name}.json" for name in evaluation.answers]
        benchmarks = trainer.datamodule.evaluation.benchmarks  # type: ignore[attr-defined]
        for path, (name, answers) in zip(paths, evaluation.answers.items(), strict=True):
            table = answers_table(answers, benchmarks[name].reference_answer)
            # One file per evaluation, written whole: MLflow's own log_table appends, and after a
            # kill it would append the same items again. The tag makes its page show a table.
            client.log_text(run_id, json.dumps(table), path)
        tables = json.loads(client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
        tables += [{"path": path, "type": "table"} for path in paths]
        unique = {table["path"]: table for table in tables}
        client.set_tag(run_id, TABLES_TAG, json.dumps(list(unique.values())))
        # Last: an evaluation with this file has all of its answers.
        point = point_of(evaluation, pl_module.schedule)
        path = evaluation_path(evaluation.step)
        client.log_text(run_id, json.dumps(point.to_dict(), indent=2), path)


def _has_record(logger: RunLogger) -> bool:
    return any(file.path == RECORD for file in logger.experiment.list_artifacts(logger.run_id))
