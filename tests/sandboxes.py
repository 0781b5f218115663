"""Programs for the sandbox's tests, and the levels that this machine can hold."""

import pytest

from sft_lab.evaluation.sandbox import (
    Level,
    Program,
    ProgramResult,
    isolation_fault,
    run_programs,
)

FAULT = isolation_fault()
needs_isolation = pytest.mark.skipif(FAULT is not None, reason=f"no isolation here: {FAULT}")
LEVELS = ["limited", pytest.param("isolated", marks=needs_isolation)]


def run(
    level: Level, *solutions: str, test: str = "", timeout_s: float = 10.0, workers: int = 1
) -> list[ProgramResult]:
    """Run solutions against one test, by default an empty one."""
    return run_programs(
        [Program(solution, test) for solution in solutions],
        timeout_s=timeout_s,
        memory_mb=256,
        workers=workers,
        level=level,
    )
