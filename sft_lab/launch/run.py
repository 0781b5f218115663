"""LightningCLI for the lab: composed configs, runs that are recorded and can be gone on with."""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.callbacks.forgetting_guard import ForgettingGuard
from sft_lab.callbacks.in_loop_evaluation import InLoopEvaluation
from sft_lab.callbacks.progress_line import ProgressLine
from sft_lab.callbacks.run_checkpoint import RunCheckpoint
from sft_lab.callbacks.run_recorder import RunRecorder
from sft_lab.callbacks.stage_scheduler import StageScheduler
from sft_lab.callbacks.training_log import TrainingLog
from sft_lab.config.compose import compose
from sft_lab.config.identity import identity
from sft_lab.config.keys import check_keys
from sft_lab.data.corpus import Corpus
from sft_lab.errors import Interrupted, RequestError
from sft_lab.evaluation.generation import VllmEngine
from sft_lab.evaluation.prompts import Prompts
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.launch.parser import (
    _DECIDED_ELSEWHERE,
    GROUPS,
    RUN_KEYS,
    TOP_KEYS,
    add_data_arguments,
    explain,
)
from sft_lab.model.qlora import check_base
from sft_lab.paths import make_folder
from sft_lab.runs.checkpoint import AtomicCheckpointIO, RunStamp, read_checkpoint
from sft_lab.runs.contents import run_record
from sft_lab.runs.fork import (
    FORK_TAG,
    Fork,
    check_end,
    check_records,
    find_fork,
    place_checkpoints,
    take_over,
)
from sft_lab.runs.lock import run_lock
from sft_lab.runs.logger import NO_LOGGER, RunLogger
from sft_lab.runs.record import read_record
from sft_lab.runs.resume import Resume, check_model, check_run, resume_last, resume_path
from sft_lab.runs.store import RunStore
from sft_lab.runs.store_uri import prepare_store
from sft_lab.runs.tags import run_tags
from sft_lab.terminal import silence
from sft_lab.training.data_modules import StagedDataModule, micro_batches_per_step
from sft_lab.training.guard import decisions
from sft_lab.training.module import SFTModule

RUN_COMMANDS = ("fit", "validate", "test")
_TRAINER = {
    "reload_dataloaders_every_n_epochs": 1,
    "num_sanity_val_steps": 0,
    # InLoopEvaluation says when: Lightning would count micro-batches and skip step 0.
    "check_val_every_n_epoch": None,
    "val_check_interval": sys.maxsize,
    "max_epochs": -1,  # StageScheduler sets it: the passes of all stages
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class LabCLI(LightningCLI):
    """Parses a run's config and runs it.

    Args:
        command: ``fit``, ``validate`` or ``test``.
        arguments: What stands behind it on the command line.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        silence()
        self.composed, self.files, rest = compose(arguments, RUN_KEYS)
        if not self.composed.config and not {"--help", "-h"} & set(rest):
            raise RequestError(
                f"{command} needs --config FILE, for instance configs/world/dmt.yaml."
            )
        self.resume: Resume | None = None
        self.fork: Fork | None = None
        if command != "fit" and any(argument.partition("=")[0] == "--from" for argument in rest):
            raise RequestError(
                f"--from starts a run that trains, and goes with fit, not with {command}; name a "
                "checkpoint by --ckpt_path."
            )
        check_keys(self.composed, GROUPS, TOP_KEYS)
        whole = self.composed.resolved()
        if command != "fit":
            whole.pop("from", None)  # as a config that fit has printed holds it
        content = yaml.safe_dump(whole, sort_keys=False)
        config = ["--config", content] if self.files or self.composed.config else []
        quiet = {"exit_on_error": False}
        with contextlib.ExitStack() as self.held:  # the lock of the run
            super().__init__(
                SFTModule,
                StagedDataModule,
                save_config_callback=None,  # RunRecorder files the config with the run
                seed_everything_default=0,
                trainer_defaults=_TRAINER,
                parser_kwargs={**quiet, **{name: dict(quiet) for name in RUN_COMMANDS}},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=[command, *config, *rest],
            )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {
            name: skipped
            for name, skipped in LightningCLI.subcommands().items()
            if name in RUN_COMMANDS
        }

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_data_arguments(parser)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.link_arguments("evaluation", "model.evaluation", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments(
            ("data.batch_size", "data.micro_batch_size"),
            "trainer.accumulate_grad_batches",
            compute_fn=micro_batches_per_step,
        )

    @override
    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                "--from",
                type=str | None,
                metavar="RUN@STAGE",
                help="start a new run from the end of another run's stage; RUN is an id, a unique "
                "beginning of one, or a run name. Up to there the config must be that run's.",
            )
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as fault:
            raise RequestError(explain(str(fault), self.composed)) from fault

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would load the checkpoint, and trip over a damaged one."""

    @property
    def settings(self) -> Namespace:
        """The parsed values of the command."""
        return self.config[self.subcommand]

    @override
    def before_instantiate_classes(self) -> None:
        dumped = self.parser.dump(
            self.config, skip_link_targets=False, skip_unset=False, format="yaml"
        )
        self.plain: dict[str, Any] = yaml.safe_load(dumped)[self.subcommand]
        self.plain.pop("from", None)  # its home is the run's tag; a config must not fork again
        self.check_settings()
        logger = self.settings.trainer.logger
        logger.init_args.run_name = logger.init_args.run_name or self._run_name()
        logger.init_args.tags = {  # what the lab finds runs by wins over the user's own
            **(logger.init_args.tags or {}),
            **run_tags(self.plain, self.strategy, str(self.subcommand)),
        }
        uri, artifacts = str(logger.init_args.tracking_uri), logger.init_args.artifact_location
        prepare_store(uri, str(logger.init_args.experiment_name))
        if artifacts and uri.startswith("sqlite:"):
            make_folder("trainer.logger.init_args.artifact_location", Path(artifacts))
        if self.subcommand == "fit":
            self._choose_start(uri, Path(self.settings.checkpoint.dirpath))
            if self.resume is not None:
                logger.init_args.run_id = self.resume.run_id
            if self.fork is not None:
                logger.init_args.tags[FORK_TAG] = self.fork.name

    def _choose_start(self, uri: str, dirpath: Path) -> None:
        """Find the run to go on with, or the stage's end to start from."""
        wanted, origin = self.settings.ckpt_path, self.settings["from"]
        if wanted is not None and origin is not None:
            raise RequestError(
                f"--from {origin} starts a new run, --ckpt_path {wanted} goes on with one; "
                "leave one of them out."
            )
        if wanted is not None:
            wanted_last = str(wanted) == "last"
            self.resume = (
                resume_last(uri, dirpath, self.plain)
                if wanted_last
                else resume_path(Path(wanted), self.plain)
            )
            make_folder("checkpoint.dirpath", dirpath)
            self.held.enter_context(run_lock(dirpath / self.resume.run_id))
            check_run(uri, self.resume)
            checkpoint, origin = self.resume.checkpoint, self.resume.forked_from
            self.settings.ckpt_path = str(checkpoint) if checkpoint else None
        if origin is not None:
            self.fork = find_fork(RunStore(uri), dirpath, origin, self.plain)

    def check_settings(self) -> None:
        """Look at what the types of arguments leave open.

        Raises:
            RequestError: Naming the key and the fix.
        """
        logger = self.settings.trainer.logger
        if not isinstance(logger, Namespace) or not str(logger.get("class_path", "")).endswith(
            "RunLogger"
        ):
            raise RequestError(NO_LOGGER)
        self._check_trainer()
        devices, num_nodes = self.settings.trainer.devices, self.settings.trainer.num_nodes
        if str(devices) not in ("1", "[0]", "0,") or num_nodes != 1:
            raise RequestError(
                f"trainer.devices: a run takes one device, got {devices} on {num_nodes} nodes; "
                "set trainer.devices to 1."
            )

    def _check_trainer(self) -> None:
        given = self.composed.resolved().get("trainer", {})
        signature = inspect.signature(Trainer).parameters
        for name, instead in _DECIDED_ELSEWHERE.items():
            # The parser has put its own value over that of a linked key.
            is_linked = name == "accumulate_grad_batches"
            decided = (
                self.settings.trainer[name]
                if is_linked
                else _TRAINER.get(name, signature[name].default)
            )
            if name in given and given[name] != decided:
                key = f"trainer.{name}"
                raise RequestError(
                    f"{self.composed.origin(key)}{key} follows from {instead}, got {given[name]}; "
                    "leave it out and set that."
                )

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as fault:
            # Inside a union the parser takes our errors for a type that did not fit, and rewords
            # them.
            chain: BaseException | None = fault
            while chain is not None:
                if isinstance(chain, RequestError):
                    raise chain from None
                chain = chain.__cause__ or chain.__context__
            raise

    @property
    def strategy(self) -> str:
        """The strategy's name: that of its config file."""
        return Path(self.files[0]).stem if self.files else "custom"

    def _run_name(self) -> str:
        k = self.plain["data"]["k"]
        parts = [
            self.strategy,
            f"k={k}" if k is not None else "",
            f"seed {self.plain['seed_everything']}",
        ]
        if self.subcommand != "fit":
            parts.insert(0, str(self.subcommand))
        return " ".join(part for part in parts if part)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        suite: EvaluationSuite = self._get(self.config_init, "evaluation")
        corpus: Corpus = self._get(self.config_init, "corpus")
        evaluation = InLoopEvaluation(suite)
        log = TrainingLog(list(corpus.sources), evaluation)
        history = AbilityHistory(suite)
        scheduler = StageScheduler()
        settings = self.datamodule.guard
        guard = settings and ForgettingGuard(settings, suite, history, scheduler)
        uri = str(self.settings.trainer.logger.init_args.tracking_uri)
        ours: list[Callback] = [
            *([guard] if guard else []),
            scheduler,
            evaluation,
            log,
            history,
            RunRecorder(self.plain),
            ProgressLine(log, history, suite, guard, f"mlflow ui --backend-store-uri {uri}"),
        ]
        configured = self._get(self.config_init, "trainer")
        callbacks = [*(configured.get("callbacks") or []), *ours]
        plugins = [*(configured.get("plugins") or []), AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)
        except MisconfigurationException as fault:
            raise RequestError(f"trainer: {fault}") from fault

    def fit(self, **kwargs: Any) -> None:
        """Train; the run's status in MLflow tells how it ended."""
        logger = cast(RunLogger, self.trainer.logger)
        self.datamodule.setup("fit")
        check_base(self.model.base)
        self._check_evaluation()
        checkpoint: RunCheckpoint = self._get(self.config_init, "checkpoint")
        make_folder("checkpoint.dirpath", checkpoint.dirpath)
        store = RunStore(logger.tracking_uri)
        if self.fork is not None:
            self._restore_plans(self.fork)
            record = run_record(self.datamodule, self.model.generates_with)
            check_records(self.fork, read_record(store, self.fork.run_id), record)
            check_end(self.fork, store, self.datamodule.schedule)
        with recorded(logger):
            stamp = checkpoint.stamp = RunStamp(str(logger.run_id), identity(self.plain))
            if self.resume is None:
                self.held.enter_context(run_lock(checkpoint.dirpath / stamp.run_id))
            if self.fork is not None:
                take_over(self.fork, store, logger, self.datamodule.schedule)
                kwargs["ckpt_path"] = place_checkpoints(
                    self.fork, checkpoint.dirpath, stamp, keep_stages=checkpoint.keep_stages
                )
            self.trainer.fit(**kwargs)

    def _restore_plans(self, fork: Fork) -> None:
        """Plan a guarded stage that the other run has trained as it came to be trained."""
        states = read_checkpoint(fork.checkpoint, option="--from:")["callbacks"]
        if self.datamodule.guard is not None and "ForgettingGuard" in states:
            self.datamodule.restore_plans(decisions(states["ForgettingGuard"]))

    def _check_evaluation(self) -> None:
        for name, benchmark in self.model.evaluation.benchmarks.items():
            try:
                benchmark.check()
            except RequestError as fault:
                raise RequestError(f"evaluation.benchmarks.{name}: {fault}") from fault
        self._check_server()

    def _check_server(self) -> None:
        model: SFTModule = self.model
        if not isinstance(model.engine, VllmEngine) or model.lora is None:
            return
        lengths = [
            max(map(len, found.prompts)) + model.evaluation.benchmarks[found.name].max_new_tokens
            for found in self.datamodule.eval_sets
            if isinstance(found, Prompts)
        ]
        model.engine.check(model.base, rank=model.lora.r, num_tokens=max(lengths, default=0))

    def validate(self, **kwargs: Any) -> None:
        """Score a checkpoint, or the bare base."""
        self._score(**kwargs)

    def test(self, **kwargs: Any) -> None:
        """Score a checkpoint, or the bare base."""
        self._score(**kwargs)

    def _score(self, **kwargs: Any) -> None:
        self.datamodule.setup(str(self.subcommand))
        check_base(self.model.base)
        self._check_evaluation()
        if kwargs.get("ckpt_path"):
            check_model(Path(kwargs["ckpt_path"]), self.plain)
        with recorded(cast(RunLogger, self.trainer.logger)):
            getattr(self.trainer, str(self.subcommand))(**kwargs)


@contextlib.contextmanager
def recorded(logger: RunLogger) -> Iterator[None]:
    """Hold a run open, and close it with the status that is true."""
    logger.start()
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        logger.end("KILLED")
        raise
    except BaseException:
        logger.end("FAILED")
        raise
    logger.end("FINISHED")
