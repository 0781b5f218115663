"""Finds tasks of lm-evaluation-harness by name, and makes what they do quiet and repeatable."""

import contextlib
import difflib
import functools
import io
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sft_lab.errors import RequestError
from sft_lab.paths import settle_offline


def find_task(name: str, include_path: str | None) -> Any:
    """Return a task with its data.

    Args:
        name: Its name; those in ``include_path`` come first.
        include_path: A folder with YAML files of tasks of one's own.

    Raises:
        RequestError: If there is no such task, or its data are not to be had.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise RequestError(f"include_path must be a folder of YAML files, got {include_path}.")
    manager = None
    if include_path is not None:
        manager = _manager(include_path, False)
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
    """Return the index of tasks; that of the thirteen thousand shipped ones takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=with_defaults)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and advice out of what a person watches."""
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
    """Let tasks that shuffle do so alike every time, and leave the random state of training."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)  # as lm-evaluation-harness does, numpy's too
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
