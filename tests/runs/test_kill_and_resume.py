"""The smaller form of ``python tests/kill_and_resume.py``."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from kill_and_resume import kill_and_resume
points = ["during an evaluation", "half-way through the fourth checkpoint", "at the boundary"]
print(kill_and_resume(kills=1, seed=0, points=points))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_last_bit() -> None:
    # In a process of its own: the script forks, which a process with threads must not.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *cases, faults = done.stdout.splitlines()
    assert faults == "[]", done.stdout
    assert len(cases) == 4
    assert sum("exact" in case for case in cases) == 4
