"""Check that a study reserves the devices that its runs use."""

from collections.abc import Mapping
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.launch.devices import num_ranks
from sft_lab.study.design import Resources

_ALL = ("auto", "-1")


def num_processes(resources: Resources, trainer: Mapping[str, Any]) -> int:
    """Return the number of processes of a run; it has as many GPUs, or at least as many cores.

    Args:
        resources: What the study reserves for a run.
        trainer: The Trainer's arguments.

    Raises:
        RequestError: If the run would leave some of its GPUs idle, or use those of other runs.
    """
    reserved = max(1, resources.gpus) if resources.gpus else 0  # a part of a GPU is one device
    devices = _named_devices(trainer)
    if devices is None:  # all that Ray shows to the run
        devices = int(reserved) or num_ranks(trainer)
    if reserved and devices != reserved:
        raise RequestError(
            f"resources.gpus reserves {resources.gpus:g} for a run, whose trainer.devices is "
            f"{devices}; set resources.gpus to {devices}, or trainer.devices under set."
        )
    if not reserved and devices > resources.cpus:
        raise RequestError(
            f"resources.cpus reserves {resources.cpus} for a run, whose trainer.devices is "
            f"{devices}; set resources.cpus to {devices} or more, or resources.gpus to {devices}."
        )
    return devices


def _named_devices(trainer: Mapping[str, Any]) -> int | None:
    """Return how many devices are named, which this machine may lack; None if all there are."""
    devices = trainer["devices"]
    if str(devices) in _ALL:
        return None
    listed = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    if isinstance(listed, list):
        return len([part for part in listed if part != ""])
    try:
        return int(listed)
    except ValueError:
        raise RequestError(
            f"trainer.devices must be a number, a list of numbers, or auto, got {devices}."
        ) from None
