"""Run what a config describes: train (``fit``), or score a checkpoint (``validate``, ``test``)."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import mkstemp

from mlflow.exceptions import MlflowException

from sft_lab import distributed
from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.callbacks.progress_screen import ProgressScreen
from sft_lab.config.identity import digest, identity
from sft_lab.cost.known_speed import KnownSpeeds
from sft_lab.cost.run_cost import run_cost, run_parameters
from sft_lab.errors import RESUME_HINT, Interrupted, RequestError, RunError
from sft_lab.launch.build import Run, artifact_folder, build
from sft_lab.launch.devices import ranks_to_start
from sft_lab.launch.evaluate import evaluate_checkpoint
from sft_lab.launch.limits import check_limits
from sft_lab.launch.processes import run_ranks
from sft_lab.launch.run_config import RunConfig
from sft_lab.launch.start import Start, choose_start
from sft_lab.model.adapter_config import Lora
from sft_lab.model.coverage import coverage
from sft_lab.model.kernels import check_attention
from sft_lab.model.qlora import check_weights
from sft_lab.model.sharding import check_shardable
from sft_lab.paths import check_folder, make_folder
from sft_lab.runs.accidents import is_of_store
from sft_lab.runs.checkpoint import RunStamp, read_checkpoint
from sft_lab.runs.evaluations import read_points
from sft_lab.runs.fork import Fork, check_end
from sft_lab.runs.inputs import CODE, check_inputs, check_same, code_digest, run_inputs
from sft_lab.runs.lock import run_lock
from sft_lab.runs.logger import RunLogger
from sft_lab.runs.parent_record import copy_parent_record, place_checkpoints
from sft_lab.runs.resume import Resume, check_model
from sft_lab.runs.store import RunStore, prepare_store
from sft_lab.runs.store_uri import check_store
from sft_lab.training.replan import saved_plan_changes
from sft_lab.training.sharded import Sharded


def fit(config: RunConfig) -> str:
    """Train through all stages; the run's status in MLflow records how it ended.

    Args:
        config: The parsed config; ``ckpt_path`` resumes a run, ``fork_from`` starts from another.

    Returns:
        The run's id.

    Raises:
        RequestError: If the run cannot start, before anything is trained.
    """
    if (num_ranks := ranks_to_start(config)) > 1:
        return run_ranks(config, num_ranks)
    with distributed.joined(), ExitStack() as held:
        start = distributed.by_first(lambda: _chosen_start(config, held))
        run, inputs = _set_up(config, start)
        _say_minutes(run, RunStore(run.logger.tracking_uri))
        changes = distributed.by_first(partial(_check_inputs, run.start, inputs))
        if run.start.fork is not None:
            distributed.by_all(partial(_check_fork, run, run.start.fork))
        distributed.by_first(partial(_prepare, config))
        _check_shared(Path(config.plain["checkpoint"]["dirpath"]))
        with recorded(run.logger, _how_to_resume(run)):
            checkpoint = distributed.by_first(partial(_opened, run, inputs, changes, held))
            run.trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint)
            distributed.by_first(partial(_log_model, run))
        return run.logger.run_id


def _chosen_start(config: RunConfig, held: ExitStack) -> Start:
    _check_writable(config)
    return choose_start(config, held)


def _set_up(config: RunConfig, start: Start | None = None) -> tuple[Run, dict[str, str]]:
    """Build a run and read its data; return it with the digests of its inputs.

    Raises:
        RequestError: If the run cannot start, on all ranks if it cannot on one, or if ranks differ.
    """

    def ready() -> tuple[Run, dict[str, str]]:
        run = build(config, start)
        engine = run.module.evaluation.engine
        if distributed.world_size() > 1 and not engine.is_local:
            raise RequestError(
                f"evaluation.engine: {engine.name} answers a run on one device, and this one has "
                f"{distributed.world_size()}; set evaluation.engine to native."
            )
        run.data.setup(config.command)
        check_limits(run.data, run.module.base)
        check_weights(run.module.base)
        coverage(run.module.base, run.module.quantization, run.module.adapters)
        check_attention(run.module.base, run.module.attn_implementation)
        if sharded := isinstance(run.trainer.strategy, Sharded):
            check_shardable(run.module.base)
        _check_evaluation(run)
        return run, run_inputs(run.data, run.module.base, sharded=sharded)

    run, inputs = distributed.first_then_others(ready)
    found = distributed.gather(inputs | {"config": digest(config.plain), CODE: code_digest()})
    distributed.by_all(partial(check_same, found))
    return run, inputs


def _opened(run: Run, inputs: dict[str, str], changes: list[str], held: ExitStack) -> Path | None:
    """Open a run's record and return the checkpoint to train from, placed there for a fork."""
    store, fork = RunStore(run.logger.tracking_uri), run.start.fork
    stamp = run.checkpoint.stamp = RunStamp(run.logger.run_id, identity(run.config.plain), inputs)
    if run.start.resume is not None:
        changes = [*changes, *_missing_points(run.start.resume, run.logger)]
    if changes:
        run.logger.say_changes(changes)
    if run.start.resume is None:
        held.enter_context(run_lock(run.checkpoint.dirpath / stamp.run_id))
    if fork is None:
        return run.start.checkpoint
    copy_parent_record(fork, store, run.logger, run.data.schedule)
    keep_stages = run.checkpoint.keep_stages
    return place_checkpoints(fork, run.checkpoint.dirpath, stamp, keep_stages=keep_stages)


def score(config: RunConfig) -> str:
    """Score a checkpoint, or the bare base, with the config's benchmarks.

    Args:
        config: The parsed config of ``validate`` or ``test``.

    Returns:
        The id of the run that holds the scores.
    """
    if (num_ranks := ranks_to_start(config)) > 1:
        return run_ranks(config, num_ranks)
    with distributed.joined():
        distributed.by_first(partial(_check_writable, config))
        run, inputs = _set_up(config)
        path = Path(config.ckpt_path) if config.ckpt_path else None
        if path is not None:
            distributed.by_all(partial(check_model, path, config.plain, inputs))
        distributed.by_first(partial(_prepare, config))
        with recorded(run.logger):
            evaluate_checkpoint(run, read_checkpoint(path) if path else None)
        return run.logger.run_id


def _log_model(run: Run) -> None:
    """Log the trained model beside the run, with the scores of its last evaluation."""
    from sft_lab.runs.logged_model import log_model  # MLflow

    points = read_points(RunStore(run.logger.tracking_uri), run.logger.run_id)
    keys = [*points[-1].scores, *points[-1].losses] if points else []
    for history in run.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(history, AbilityHistory) and run.module.schedule is not None and points:
            keys += history.refresh(run.module.schedule)
    log_model(run.logger, run.config.plain, run.data.corpus.renderer.template_source, keys)


def _check_writable(config: RunConfig) -> None:
    """Check that store, artifacts and checkpoints can be written; nothing is made yet."""
    check_store(config.tracking_uri)
    check_folder("checkpoint.dirpath", Path(config.plain["checkpoint"]["dirpath"]))
    if (artifacts := artifact_folder(config)) is not None:
        check_folder("trainer.logger.init_args.artifact_location", artifacts)


def _prepare(config: RunConfig) -> None:
    """Make the folders of store, artifacts and checkpoints; check the store's experiment."""
    prepare_store(config.tracking_uri, str(config.logger["experiment_name"]))
    if (artifacts := artifact_folder(config)) is not None:
        make_folder("trainer.logger.init_args.artifact_location", artifacts)
    if config.command == "fit":
        make_folder("checkpoint.dirpath", Path(config.plain["checkpoint"]["dirpath"]))


def _check_shared(folder: Path) -> None:
    """Check that all ranks see one folder of checkpoints, from which each of them resumes.

    Raises:
        RequestError: On all ranks, if one does not see the first rank's.
    """
    if distributed.world_size() == 1:
        return
    name = distributed.by_first(lambda: Path(mkstemp(prefix=".shared-", dir=folder)[1]).name)

    def check() -> None:
        if not (folder / name).exists():
            raise RequestError(
                f"checkpoint.dirpath: {folder} on rank {distributed.rank()} is not the folder of "
                "rank 0; name one that all machines share."
            )

    try:
        distributed.by_all(check)
    finally:
        if distributed.is_first():
            (folder / name).unlink(missing_ok=True)


def _check_inputs(start: Start, inputs: Mapping[str, str]) -> list[str]:
    """Check that nothing has changed under a run's checkpoint; return changes that may be."""
    if start.fork is not None:
        asked = f"--from {start.fork.name}"
        return check_inputs(start.fork.inputs, inputs, asked, trained=start.fork.stages)
    if start.resume is not None:
        asked = f"--ckpt_path {start.checkpoint or 'last'}"
        return check_inputs(start.resume.inputs, inputs, asked, trained=start.resume.trained)
    return []


def _missing_points(resume: Resume, logger: RunLogger) -> list[str]:
    """Return a line if a store lacks points that it held when the checkpoint was written."""
    found = logger.num_points
    if found >= resume.points:
        return []
    return [
        f"points of the run in {logger.tracking_uri}: {resume.points}, now {found}, as in an older "
        "copy of the store; its curves and scores have a gap that no resume fills"
    ]


def _check_fork(run: Run, fork: Fork) -> None:
    """Restore the parent's plan changes, and check that its record can be copied."""
    states = read_checkpoint(fork.checkpoint, option="--from:")["callbacks"]
    run.data.restore_plans(saved_plan_changes(states))
    check_end(fork, RunStore(run.logger.tracking_uri), run.data.schedule)


def _say_minutes(run: Run, store: RunStore) -> None:
    """Give the screen, if a person watches one, the time that earlier runs let expect."""
    for screen in run.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(screen, ProgressScreen):
            settings = run.config.model_settings
            num_devices = distributed.world_size()
            parameters = run_parameters(run.data, settings, num_devices)
            speed = KnownSpeeds(store).speed(parameters)
            with contextlib.suppress(RequestError):  # of a model whose cost cannot be estimated
                duration = run_cost(run.data, settings, speed, num_devices).minutes
                screen.minutes = None if duration is None else duration.total


def _check_evaluation(run: Run) -> None:
    for name, benchmark in run.module.evaluation.benchmarks.items():
        try:
            benchmark.check()
        except RequestError as fault:
            raise RequestError(f"evaluation.benchmarks.{name}: {fault}") from fault
    suite, adapters = run.module.evaluation, run.module.adapters
    rank = adapters.r if isinstance(adapters, Lora) else None
    lengths = [
        max(map(len, prompts.token_ids)) + suite.benchmarks[name].max_new_tokens
        for name, prompts in suite.prompts(run.data.corpus.renderer).items()
    ]
    suite.engine.check(run.module.base, rank=rank, num_tokens=max(lengths, default=0))


@contextlib.contextmanager
def recorded(logger: RunLogger, note: str = "") -> Iterator[None]:
    """Open a run in the store, and close it with its true status; the first rank does both.

    Args:
        logger: The run's record.
        note: Added to what ends the run early.
    """
    logger.follow(distributed.by_first(logger.start))
    if not distributed.is_first():
        yield
        return
    try:
        yield
    except BaseException as fault:
        if is_of_store(fault):
            fault.add_note(f"The store is {logger.tracking_uri}.")
        if note and getattr(fault, "can_resume", True):
            fault.add_note(note)
        is_stopped = isinstance(fault, Interrupted | KeyboardInterrupt)
        # A store that cannot be written, say on a full disk, must not hide why the run ended. Left
        # as RUNNING, the run counts as KILLED once its process is gone.
        with contextlib.suppress(MlflowException, OSError, RequestError, RunError):
            check_store(logger.tracking_uri)  # at once: MLflow would try a server for minutes
            logger.end("KILLED" if is_stopped else "FAILED")
        raise
    logger.end("FINISHED")


def _how_to_resume(run: Run) -> str:
    which = RESUME_HINT if run.start.fork is None else f"{RESUME_HINT} without --from and"
    return f"{which} with --ckpt_path last resumes it."
