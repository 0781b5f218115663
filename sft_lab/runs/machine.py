"""The device that runs are trained on: its name and its memory."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """The device and its memory.

    Attributes:
        name: The GPU's name, or the processor's with the number of CPUs this process may use.
        memory: Bytes of the GPU, or of RAM that this process may use.
        free: Bytes of it that are free now.
    """

    name: str
    memory: int
    free: int


def this_machine() -> Machine:
    """Return the device that a run would use."""
    if torch.cuda.is_available():
        free, memory = torch.cuda.mem_get_info(0)
        return Machine(torch.cuda.get_device_name(0), memory, free)
    ram = psutil.virtual_memory()
    limit = _number(_CGROUP / "memory.max")
    if limit is None or limit >= ram.total:
        return Machine(device_name(), ram.total, ram.available)
    used = _number(_CGROUP / "memory.current") or 0
    return Machine(device_name(), limit, min(ram.available, max(0, limit - used)))


def device_name() -> str:
    """Return the name by which runs on equal devices are recognised."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{_processor()}, {len(os.sched_getaffinity(0))} CPUs"


def devices_text(num_devices: int, *, sharded: bool) -> str:
    """Return how many devices a run has, and whether its model is sharded over them."""
    return f"{num_devices} (fsdp)" if sharded else str(num_devices)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _number(file: Path) -> int | None:
    """Return the number in a file of the container's limits; None if there is no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max"
        return None
