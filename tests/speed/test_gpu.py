"""``gpu.py`` with tiny bases on the CPU: it runs, which shows nothing about CUDA."""

import subprocess
import sys
from pathlib import Path

import gpu
import gpu_checks
import pytest
import torch
from gpu_bench import Row


def table(path: Path) -> dict[str, list[str]]:
    """Return the cells of each row by its first one."""
    rows = [line.strip("| ").split(" | ") for line in path.read_text().splitlines() if "|" in line]
    return {what.strip(): cells for what, *cells in rows[2:]}


def test_device_and_cpu_are_compared_and_engines_timed(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    assert gpu.main([str(out), "--tiny", "--only", "numbers", "packing", "evaluation"]) == 0
    rows = table(out)
    for what in ("losses, NF4 + LoRA, float32", "greedy answers", "packed rows apart, sdpa"):
        assert rows[what][-1] == "equal"
    assert rows["0.5B, native, merged"][-1].endswith("x, 12 of 12 the same")
    assert f"torch {torch.__version__}" in out.read_text()


def test_an_entry_that_fails_is_a_row_and_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> list[Row]:
        raise MemoryError("no room | for it\nat all")

    monkeypatch.setattr(gpu, "checks", lambda bench: [("broken", fails)])
    monkeypatch.setattr(gpu, "timings", lambda bench: [("fine", lambda: [Row("fine", "1 s")])])
    out = tmp_path / "table.md"
    assert gpu.main([str(out), "--tiny"]) == 1
    assert out.read_text().splitlines()[-2:] == [
        "| broken |  |  | ERROR: MemoryError: no room / for it |",
        "| fine | 1 s |  |  |",
    ]


@pytest.mark.extended
def test_with_cuda_the_cpu_computes_in_processes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_checks, "CUDA", True)  # what is compared is the CPU still
    out = tmp_path / "table.md"
    assert gpu.main([str(out), "--tiny", "--only", "numbers", "fit"]) == 0
    assert [outcome for *_, outcome in table(out).values()] == ["equal"] * 4


@pytest.mark.extended
def test_every_entry_runs(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    command = [sys.executable, gpu.__file__, str(out), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = table(out)
    assert {"training 0.5B, packed", "0.5B on two devices, fsdp"} <= rows.keys()
    assert "ERROR" not in out.read_text()
