"""Kill runs with SIGKILL, resume each, and compare the result with an unbroken run.

    python tests/kill_and_resume.py --kills 20
    python tests/kill_and_resume.py --kills 20 --devices 2    # a random one of two processes

Every kill is at a random moment, or at a named point such as half-way through writing a
checkpoint. A killed run is resumed by ``--ckpt_path last``; in the end its MLflow run holds every
point of the unbroken one exactly once, equal to the last bit, and the same adapters. Of a run on
several devices one process is killed, at random moments only, and the command must end by itself.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

COMMAND = [
    "fit",
    "--config=configs/world/dmt.yaml",
    "--data.k={rows: 6}",
    "--data.stages.specialize.mixture.math={rows: 24}",
    "--data.stages.specialize.mixture.code={rows: 12}",
    "--data.stages.specialize.epochs=2",
    "--data.stages.generalize.mixture.general={rows: 20}",
    "--data.stages.generalize.optimizer=keep",
    "--data.batch_size=4",
    "--data.micro_batch_size=2",
    "--model.lora.lora_dropout=0.1",
    "--evaluation.every_n_steps=5",
    "--evaluation.benchmarks.world_math.init_args.num_examples=6",
    "--evaluation.benchmarks.world_math.init_args.max_new_tokens=8",
    "--evaluation.benchmarks.world_code.init_args.num_examples=6",
    "--evaluation.benchmarks.world_code.init_args.max_new_tokens=8",
    "--evaluation.benchmarks.world_general.init_args.num_examples=6",
    "--evaluation.benchmarks.world_general.init_args.max_new_tokens=8",
    "--corpus.val_rows=4",
    "--checkpoint.every_n_steps=3",
    "--trainer.log_every_n_steps=2",
]
STORE = "sqlite:///mlruns/mlflow.db"
# Measured times differ between any two runs.
CLOCKS = ("speed/", "time/")
HANGS_S = 600


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_call(owner: Any, name: str, call: int, *, after: bool = False) -> Callable[[], None]:
    """Return a function that arranges a kill at the ``call``-th call of another function."""

    def arm() -> None:
        original = getattr(owner, name)
        calls = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and not after:
                _die()
            result = original(*args, **kwargs)
            if calls == call:
                _die()
            return result

        setattr(owner, name, counted)

    return arm


def _kill_half_way_through_writing(call: int) -> Callable[[], None]:
    def arm() -> None:
        original = torch.save
        calls = 0

        def half(checkpoint: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                file.write(b"half a checkpoint")
                file.flush()
                _die()
            original(checkpoint, file, *args, **kwargs)

        torch.save = half

    return arm


def points_of_no_return() -> dict[str, Callable[[], None]]:
    """Return the named moments of kills, each with the function that arranges the kill."""
    from sft_lab.callbacks.in_loop_evaluation import InLoopEvaluation
    from sft_lab.callbacks.run_checkpoint import RunCheckpoint
    from sft_lab.callbacks.stage_scheduler import StageScheduler
    from sft_lab.evaluation.generation import NativeEngine
    from sft_lab.runs.logger import RunLogger
    from sft_lab.training.module import SFTModule

    return {
        "before the first evaluation": _kill_at_call(InLoopEvaluation, "evaluate", 1),
        "during the first evaluation": _kill_at_call(SFTModule, "held_out_losses", 1, after=True),
        "half-way through the first checkpoint": _kill_half_way_through_writing(1),
        "half-way through the fourth checkpoint": _kill_half_way_through_writing(4),
        "before a checkpoint is moved into place": _kill_at_call(os, "replace", 3),
        "between two micro-batches of a window": _kill_at_call(SFTModule, "training_step", 14),
        "during an evaluation": _kill_at_call(NativeEngine, "complete", 8),
        "after an evaluation": _kill_at_call(InLoopEvaluation, "evaluate", 3, after=True),
        "while points are logged": _kill_at_call(RunLogger, "log_metrics", 9, after=True),
        "at the end of a pass": _kill_at_call(StageScheduler, "on_train_epoch_end", 1, after=True),
        "at the boundary": _kill_at_call(StageScheduler, "on_train_epoch_end", 2, after=True),
        "after the boundary's checkpoint": _kill_at_call(RunCheckpoint, "_save", 8, after=True),
        "before the next stage's first batch": _kill_at_call(
            StageScheduler, "on_train_epoch_start", 3
        ),
        "during the last evaluation": _kill_at_call(NativeEngine, "complete", 23),
        "after the last step": _kill_at_call(StageScheduler, "on_train_epoch_end", 3),
    }


def run(
    extra: list[str],
    arm: Callable[[], None] | None = None,
    kill_after_s: float | None = None,
    rank: int | None = None,
) -> tuple[int, float]:
    """Run the command in a forked process, so that libraries are imported once for all runs.

    Returns:
        The exit status, negative for a signal, and the duration in seconds.
    """
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        from sft_lab.commands.main import main

        with open("log.txt", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                if arm:
                    arm()
                code = main([*COMMAND, *extra])
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            log.flush()
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        seconds = time.perf_counter() - start
        if done:
            return os.waitstatus_to_exitcode(status), seconds
        if kill_after_s is not None and seconds > kill_after_s:
            if rank is None:
                os.kill(child, signal.SIGKILL)
            elif (found := rank_process(child, rank)) is not None:
                os.kill(found, signal.SIGKILL)
                kill_after_s = None
        if seconds > HANGS_S:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"the command has not ended after {HANGS_S} s")
        time.sleep(0.005)


def rank_process(command: int, rank: int) -> int | None:
    """Return the process id of a rank that a command has started, or None if it has not."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(command).children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if process.environ().get("RANK") == str(rank):
                    return int(process.pid)
    return None


def record() -> dict[str, list[tuple[int, float]]]:
    """Return every point of the only run in the store, by key, in the order of steps."""
    from sft_lab.runs.store import RunStore

    store = RunStore(STORE)
    (found,) = store.runs()
    if found.info.status != "FINISHED":
        raise AssertionError(f"the run is {found.info.status}")
    run_id = found.info.run_id
    points = {
        key: sorted((p.step, p.value) for p in store.client.get_metric_history(run_id, key))
        for key in found.data.metrics
    }
    for key, history in points.items():
        steps = [step for step, _ in history]
        if len(steps) != len(set(steps)):
            raise AssertionError(f"{key} holds a step twice: {steps}")
    weights = torch.load(f"mlruns/checkpoints/{run_id}/last.ckpt", weights_only=True)["state_dict"]
    points["(sum of squares of the adapters)"] = [
        (0, float(sum(w.double().square().sum() for w in weights.values())))
    ]
    return points


def differences(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Return the keys in which two records differ, except measured times."""
    keys = sorted({*expected, *got})
    return [
        f"{key}: expected {expected.get(key)}, got {got.get(key)}"
        for key in keys
        if not key.startswith(CLOCKS) and expected.get(key) != got.get(key)
    ]


def kill_and_resume(
    kills: int, seed: int, points: list[str] | None = None, devices: int = 1
) -> list[str]:
    """Kill and resume runs, each in a folder of its own, and print the outcomes.

    Args:
        kills: Number of random moments.
        seed: Seed of the moments.
        points: Names of further moments; None for all.
        devices: Processes of a run; of several, one is killed, and only at random moments.

    Returns:
        The faults; none if every resume was exact.
    """
    from sft_lab.study.fork_server import import_for_runs

    import_for_runs()
    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    moments = points_of_no_return()
    named = list(moments) if points is None else points
    several = [f"--trainer.devices={devices}", "--trainer.accelerator=cpu"] if devices > 1 else []
    if several:
        named = []
    home = Path.cwd()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "unbroken").mkdir()
        os.chdir(Path(folder) / "unbroken")
        code, seconds = run(several)
        if code:
            raise AssertionError(
                f"the unbroken run ended with {code}:\n{Path('log.txt').read_text()}"
            )
        expected = record()
        chance = random.Random(seed)
        cases: list[tuple[str, Callable[[], None] | None, float | None]] = [
            (name, moments[name], None) for name in named
        ]
        for _ in range(kills):
            moment = chance.uniform(0, seconds)
            cases.append((f"after {moment:.2f} of {seconds:.2f} s", None, moment))
        for index, (name, arm, kill_after_s) in enumerate(cases):
            path = Path(folder) / str(index)
            path.mkdir()
            os.chdir(path)
            rank = chance.randrange(devices) if several else None
            code, _ = run(several, arm, kill_after_s, rank)
            name += f" rank {rank}" if several else ""
            outcome = "finished before the kill"
            if code == -signal.SIGKILL or (several and code == 1):
                has_run = _has_run()
                outcome = "resumed" if has_run else "restarted"
                code, _ = run([*several, "--ckpt_path=last"] if has_run else several)
            problems = (
                [] if code == 0 else [f"ended with {code}: {Path('log.txt').read_text()[-2000:]}"]
            )
            problems = problems or differences(expected, record())
            if arm and outcome == "finished before the kill":
                problems.append("the run did not come to this point")
            faults += [f"killed {name}: {problem}" for problem in problems]
            print(f"killed {name}, {outcome}: {problems or 'exact'}", flush=True)
        os.chdir(home)
    return faults


def _has_run() -> bool:
    """Return whether the killed process had opened its MLflow run."""
    from sft_lab.runs.store import RunStore

    return Path("mlruns/mlflow.db").exists() and bool(RunStore(STORE).unfinished())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1, help="processes of a run")
    options = parser.parse_args()
    found = kill_and_resume(options.kills, options.seed, devices=options.devices)
    print(f"{len(found)} faults")
    sys.exit(bool(found))
