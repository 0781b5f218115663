"""The smaller form of ``python tests/kill_and_resume.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_world_data

SCRIPT = """
from pathlib import Path

import pytest
from kill_and_resume import kill_and_resume
from tiny_lab import copy_tables, leave_out_drawings

with pytest.MonkeyPatch.context() as patch:
    copy_tables(patch, Path("{folder}/tables.db"))
    leave_out_drawings(patch)
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
    kills: int, points: list[str] | None, devices: int, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").symlink_to(tiny_base)
    write_world_data(tmp_path / "data", num_rows=40, num_items=12)
    # In a process of its own: the script forks, which a process with threads must not.
    script = SCRIPT.format(kills=kills, points=points, devices=devices, folder=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "SFT_LAB_WORLD": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *cases, faults = done.stdout.splitlines()
    assert faults == "[]", done.stdout
    assert len(cases) >= kills + len(POINTS if points is None else points)
    assert all("exact" in case for case in cases)
