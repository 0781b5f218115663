"""Find tasks of lm-evaluation-harness by name, and keep them quiet and repeatable."""

import contextlib
import difflib
import functools
import io
import logging
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sft_lab.errors import RequestError
from sft_lab.paths import settle_offline

_FEWSHOT_SEED = 1234  # as in lm-evaluation-harness


def find_task(name: str, include_path: str | None, num_fewshot: int | None) -> Any:
    """Return a task with its data.

    Args:
        name: The task's name; tasks in ``include_path`` take precedence.
        include_path: A folder with YAML files of custom tasks.
        num_fewshot: Examples before each question; None keeps the task's default.

    Raises:
        RequestError: If there is no such task, its data are unavailable, or it needs what this
            project does not have.
    """
    if find_spec("lm_eval") is None:
        raise RequestError(
            f"task {name} needs lm-evaluation-harness, which is not installed; "
            "pip install 'sft_lab[harness]'."
        )
    with quiet(), seeded():
        task = _load(name, include_path)
        if num_fewshot is not None:
            task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(_FEWSHOT_SEED)
    if getattr(task, "UNSAFE_CODE", False):
        raise RequestError(
            f"task {name} runs generated code without a sandbox; use the benchmarks HumanEval and "
            "MBPP of sft_lab.evaluation, which have one."
        )
    if getattr(task, "MULTIMODAL", False):
        raise RequestError(f"task {name} asks with images or sound; only text is supported.")
    return task


def _load(name: str, include_path: str | None) -> Any:
    if include_path is not None and not Path(include_path).is_dir():
        raise RequestError(f"include_path must be a folder of YAML files, got {include_path}.")
    manager = None if include_path is None else _manager(include_path, False)
    if manager is None or name not in manager.all_tasks:
        manager = _manager(include_path, True)
    if name in manager.all_groups or name in manager.all_tags:
        raise RequestError(f"task {name} is a group of tasks; name one benchmark for each of them.")
    if name not in manager.all_subtasks:
        near = difflib.get_close_matches(name, manager.all_subtasks, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "lm-eval ls tasks lists them."
        raise RequestError(f"lm-evaluation-harness has no task {name!r}; {hint}")
    settle_offline()
    try:
        return manager.load([name])["tasks"][name]
    except Exception as fault:  # tasks are programs, and datasets raises whatever its backends do
        reason = (str(fault).strip() or type(fault).__name__).split("\n")[0].rstrip(".")
        raise RequestError(
            f"task {name} cannot be loaded: {reason}. If its data are on the hub, go online once."
        ) from fault


@functools.cache
def _manager(include_path: str | None, with_defaults: bool) -> Any:
    """Return an index of tasks; indexing the 13,000 shipped ones takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=with_defaults)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the harness's progress bars and hints."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Seed tasks that shuffle, as the harness does, and restore the random state of training."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
