"""Check that the devices of a study's runs are those that the study reserves for a run."""

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
    devices = num_ranks(trainer)
    if resources.gpus:
        reserved = max(1, resources.gpus)  # a part of a GPU is one device
        if str(trainer["devices"]) in _ALL:  # of those that Ray shows to the run
            return int(reserved)
        if devices != reserved:
            raise RequestError(
                f"resources.gpus reserves {resources.gpus:g} for a run, whose trainer.devices is "
                f"{devices}; set resources.gpus to {devices}, or trainer.devices under set."
            )
    elif devices > resources.cpus:
        raise RequestError(
            f"resources.cpus reserves {resources.cpus} for a run, whose trainer.devices is "
            f"{devices}; set resources.cpus to {devices} or more, or resources.gpus to {devices}."
        )
    return devices
