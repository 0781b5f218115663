"""The smaller form of ``python tests/kill_and_resume.py``."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from kill_and_resume import kill_and_resume
print(kill_and_resume(kills={kills}, seed=0, points={points}, devices={devices}))
"""
POINTS = ["during an evaluation", "half-way through the fourth checkpoint", "at the boundary"]


@pytest.mark.parametrize(
    ("kills", "points", "devices"),
    [
        pytest.param(0, POINTS, 1, marks=pytest.mark.slow, id="named"),
        pytest.param(1, None, 1, marks=pytest.mark.extended, id="every"),
        pytest.param(2, [], 2, marks=pytest.mark.extended, id="two devices"),
    ],
)
def test_a_killed_run_goes_on_to_the_last_bit(
    kills: int, points: list[str] | None, devices: int
) -> None:
    # In a process of its own: the script forks, which a process with threads must not.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(kills=kills, points=points, devices=devices)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *cases, faults = done.stdout.splitlines()
    assert faults == "[]", done.stdout
    assert len(cases) >= kills + len(POINTS if points is None else points)
    assert all("exact" in case for case in cases)
