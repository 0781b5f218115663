"""Build what a config describes: ``build(config) -> Run``, or its data alone."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sft_lab import distributed
from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.callbacks.forgetting_guard import ForgettingGuard
from sft_lab.callbacks.in_loop_evaluation import InLoopEvaluation
from sft_lab.callbacks.learning_check import LearningCheck
from sft_lab.callbacks.page_writer import PageWriter
from sft_lab.callbacks.progress_line import ProgressLine
from sft_lab.callbacks.progress_screen import ProgressScreen
from sft_lab.callbacks.rank_sums import RankSums
from sft_lab.callbacks.run_checkpoint import RunCheckpoint
from sft_lab.callbacks.run_recorder import RunRecorder
from sft_lab.callbacks.stage_scheduler import StageScheduler
from sft_lab.callbacks.stage_weights import StageWeights
from sft_lab.callbacks.training_log import TrainingLog
from sft_lab.data.corpus import Corpus
from sft_lab.errors import RequestError
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.launch.devices import make_strategy
from sft_lab.launch.parser import data_parser, run_parser
from sft_lab.launch.run_config import RunConfig, find_run_logger
from sft_lab.launch.start import Start
from sft_lab.runs.checkpoint import AtomicCheckpointIO
from sft_lab.runs.evaluations import Point
from sft_lab.runs.fork import FORK_TAG
from sft_lab.runs.logger import RunLogger
from sft_lab.runs.store import RunStore
from sft_lab.runs.store_uri import store_option
from sft_lab.runs.tags import run_tags
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.module import SFTModule
from sft_lab.training.stage import check_needs


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Attributes:
        config: Its config.
        start: Where it starts: from nothing, a checkpoint, or another run's stage.
        trainer: The Trainer, with all callbacks and loggers.
        module: The model under training; its base is not loaded yet.
        data: The stages; nothing is read yet.
        checkpoint: The callback that writes the run's checkpoints.
        logger: The run's record.
    """

    config: RunConfig
    start: Start
    trainer: Trainer
    module: SFTModule
    data: StagedDataModule
    checkpoint: RunCheckpoint
    logger: RunLogger


def build(config: RunConfig, start: Start | None = None) -> Run:
    """Build the Trainer, module, data module and callbacks of a run; nothing is loaded or trained.

    Args:
        config: The parsed config.
        start: Where the run starts; by default from nothing.

    Raises:
        RequestError: If arguments contradict each other or the machine.
    """
    start = start or Start()
    seed_everything(config.seed, workers=True)
    values = config.values.clone()
    _name_run(values, config, start)
    made = _instantiated(lambda: run_parser(config.command).instantiate(values))
    check_needs(made.data.stages, adapters=made.model.adapters)
    trainer = _trainer(made, config)
    logger = next(found for found in trainer.loggers if isinstance(found, RunLogger))
    return Run(config, start, trainer, made.model, made.data, made.checkpoint, logger)


def build_data(config: RunConfig) -> StagedDataModule:
    """Build the data module of a config without its model or Trainer; nothing is read yet.

    Raises:
        RequestError: If arguments contradict each other.
    """
    values = Namespace(seed_everything=config.seed)
    for group in ("corpus", "evaluation", "data"):
        values[group] = config.values[group]
    data: StagedDataModule = _instantiated(lambda: data_parser().instantiate(values)).data
    return data


def plan_data(config: RunConfig, stage: str | None = None) -> StagedDataModule:
    """Build the data module of a config and lay out its stages, as ``fit`` does.

    Args:
        config: The parsed config; of its model only the base's tokenizer is read.
        stage: A stage that must be among the config's, or None.

    Raises:
        RequestError: If the data are wrong, or the stage is unknown.
    """
    data = build_data(config)
    if stage is not None and stage not in data.stages:
        raise RequestError(
            f"--stage: unknown stage {stage!r}; data.stages has {', '.join(data.stages)}."
        )
    data.setup("fit")
    return data


def _name_run(values: Namespace, config: RunConfig, start: Start) -> None:
    """Set what ``RunLogger`` needs to find the run again; the lab's tags override the user's."""
    arguments = find_run_logger(values.trainer.logger).init_args
    arguments.run_name = config.run_name
    arguments.tags = {
        **(arguments.tags or {}),
        **run_tags(config.plain, config.strategy, config.command),
    }
    if start.resume is not None:
        arguments.run_id = start.resume.run_id
    if start.fork is not None:
        arguments.tags[FORK_TAG] = start.fork.name


def _instantiated(make: Callable[[], Namespace]) -> Namespace:
    try:
        return make()
    except ValueError as fault:
        # Inside a union the parser takes our errors for a type that did not fit, and rewords them.
        chain: BaseException | None = fault
        while chain is not None:
            if isinstance(chain, RequestError):
                raise chain from None
            chain = chain.__cause__ or chain.__context__
        if missing := re.search(r"Requirement '([^']+)' not met", str(fault)):
            raise RequestError(
                f"trainer: a logger or callback needs {missing[1]}, which is not installed; "
                "install it by pip, or leave that out."
            ) from None
        raise


def _trainer(made: Namespace, config: RunConfig) -> Trainer:
    arguments: dict[str, Any] = made.trainer.as_dict()
    configured = arguments.pop("callbacks") or []
    if (num_ranks := distributed.world_size()) > 1:
        arguments["strategy"] = make_strategy(arguments["strategy"])
        arguments["accumulate_grad_batches"] //= num_ranks  # it counts those of all ranks
        arguments["use_distributed_sampler"] = False  # each rank's plan is its own part already
    callbacks = [
        *(configured if isinstance(configured, list) else [configured]),
        *_callbacks(made.data, made.corpus, made.evaluation, made.checkpoint, config),
        made.checkpoint,
    ]
    plugins = [*(arguments.pop("plugins") or []), AtomicCheckpointIO()]
    if num_ranks > 1:
        plugins.append(TorchElasticEnvironment())  # whoever started the ranks, it names them so
    try:
        return Trainer(**arguments, callbacks=callbacks, plugins=plugins)
    except (MisconfigurationException, ImportError, ValueError, TypeError) as fault:
        raise RequestError(f"trainer: {' '.join(str(fault).split())}") from fault


def _callbacks(
    data: StagedDataModule,
    corpus: Corpus,
    suite: EvaluationSuite,
    checkpoint: RunCheckpoint,
    config: RunConfig,
) -> list[Callback]:
    """Build the lab's own callbacks; their order is that of their hooks."""
    evaluation = InLoopEvaluation(suite, data.guard)
    log = TrainingLog(list(corpus.sources), evaluation)
    history = AbilityHistory(suite)
    scheduler = StageScheduler()
    guards = [ForgettingGuard(data.guard, suite, history, scheduler)] if data.guard else []
    sums = [RankSums()] if distributed.world_size() > 1 else []
    page = PageWriter(history, partial(_conclude, config.tracking_uri))
    screen = ProgressScreen if sys.stdout.isatty() else ProgressLine
    record = [
        RunRecorder(config.plain),
        page,
        screen(log, history, suite, page, store_option(config.tracking_uri)),
    ]
    return [
        *guards,
        evaluation,
        scheduler,  # hands over after the evaluation at a boundary
        *sums,
        LearningCheck(list(corpus.sources), checkpoint),
        log,
        history,
        StageWeights(),
        *(record if distributed.is_first() else []),
    ]


def _conclude(tracking_uri: str, run_id: str, points: Sequence[Point]) -> str:
    from sft_lab.analysis.conclusion import conclusion_of  # statistics that no start needs

    return conclusion_of(RunStore(tracking_uri), run_id, points)


def artifact_folder(config: RunConfig) -> Path | None:
    """Return the folder of a local store's artifacts; None where a server keeps them."""
    location = config.logger["artifact_location"]
    return Path(location) if location and config.tracking_uri.startswith("sqlite:") else None
