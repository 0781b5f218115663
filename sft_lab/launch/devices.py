"""Resolve ``trainer.devices`` to a number of processes, and check that the batch divides by it."""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sft_lab import distributed
from sft_lab.errors import RequestError
from sft_lab.launch.run_config import RunConfig
from sft_lab.model.sharding import FSDP
from sft_lab.training.sharded import Sharded

STRATEGIES = ("auto", "ddp", FSDP)
_SHARDING = re.compile("fsdp.+|deepspeed|model_?parallel", re.IGNORECASE)
_STARTERS = (
    "start the same command on every machine by torchrun (torchrun --nnodes {nodes} "
    "--nproc-per-node {devices} --rdzv-endpoint HOST:PORT -m sft_lab fit ...) or by srun"
)


def take_slurm_variables() -> None:
    """Name a process that ``srun`` started as one of several ranks the way ``torchrun`` does."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if distributed.is_rank() or tasks < 2 or not SLURMEnvironment.detect():
        return
    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ |= {
        "RANK": str(slurm.global_rank()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "GROUP_RANK": str(slurm.node_rank()),
        "WORLD_SIZE": str(slurm.world_size()),
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
    }


def devices_per_node(trainer: Mapping[str, Any]) -> int:
    """Return the number of devices that ``trainer.devices`` names on this machine.

    Args:
        trainer: The Trainer's arguments.

    Raises:
        RequestError: If it names none, or devices that this machine lacks.
    """
    devices, accelerator = trainer["devices"], str(trainer["accelerator"])
    on_cuda = accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    if not on_cuda and not on_cpu:  # one device of another kind, which Lightning checks
        return 1
    kind: Any = CUDAAccelerator if on_cuda else CPUAccelerator
    try:
        if str(devices) in ("auto", "-1") and on_cuda:
            return max(1, int(kind.auto_device_count()))
        if str(devices) == "auto":
            return 1
        found = kind.parse_devices(devices)
        return len(found) if isinstance(found, list) else int(found)
    except (MisconfigurationException, TypeError, ValueError) as fault:
        words = " ".join(str(fault).split()).rstrip(".")
        raise RequestError(f"trainer.devices: {words}; set it to auto, or to fewer.") from fault


def ranks_to_start(config: RunConfig) -> int:
    """Return how many processes this one must start for a run; 1 to run it in this process."""
    take_slurm_variables()
    if distributed.is_rank():
        return 1
    trainer = config.values.trainer.as_dict()
    total = num_ranks(trainer)
    check_sharing(str(trainer["strategy"]), total)
    return total


def check_sharing(strategy: str, total: int) -> None:
    """Check that there are several devices to shard a model over.

    Args:
        strategy: The Trainer's.
        total: Number of devices.

    Raises:
        RequestError: If it shards, and there is one.
    """
    if strategy == FSDP and total == 1:
        raise RequestError(
            f"trainer.strategy {FSDP} shards a model over several devices, and the run has one; "
            "set trainer.devices, or leave trainer.strategy out."
        )


def num_ranks(trainer: Mapping[str, Any]) -> int:
    """Return the number of processes of a run, over all machines."""
    return devices_per_node(trainer) * int(trainer["num_nodes"])


def check_devices(trainer: Mapping[str, Any], batch_size: int, micro_batch_size: int) -> None:
    """Check that a run can be shared by its devices.

    Args:
        trainer: The Trainer's arguments.
        batch_size: Training sequences per optimizer step, over all devices.
        micro_batch_size: Training sequences per forward pass of a device.

    Raises:
        RequestError: Naming the key and the fix.
    """
    devices, nodes = devices_per_node(trainer), int(trainer["num_nodes"])
    total = devices * nodes
    given = trainer["strategy"]
    strategy = str(given["class_path"] if isinstance(given, Mapping) else given)
    if (sharding := _SHARDING.search(strategy)) is not None:
        raise RequestError(
            f"trainer.strategy {sharding[0]}: a model is sharded by {FSDP} (FSDP2) only; set "
            f"trainer.strategy to {FSDP}, or to ddp, which keeps the whole model on each device."
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if distributed.is_rank() and started != total:
        raise RequestError(
            f"trainer.devices, trainer.num_nodes: {devices} devices on {nodes} nodes make {total} "
            f"processes, but {started} were started; set them to what was started."
        )
    if total == 1:
        return
    if nodes > 1 and not distributed.is_rank():
        how = _STARTERS.format(nodes=nodes, devices=devices)
        raise RequestError(
            f"trainer.num_nodes: a run on {nodes} machines is not started here; {how}."
        )
    if strategy not in STRATEGIES:
        raise RequestError(
            f"trainer.strategy: a run on {total} devices takes auto or ddp (both are DDP: the "
            f"whole model on each device) or {FSDP} (a part of it), got {strategy}."
        )
    check_share(batch_size, micro_batch_size, total)


def check_share(batch_size: int, micro_batch_size: int, total: int) -> None:
    """Check that every device gets as many micro-batches of a batch.

    Args:
        batch_size: Training sequences per optimizer step, over all devices.
        micro_batch_size: Training sequences per forward pass of a device.
        total: Number of devices.

    Raises:
        RequestError: Naming the key and the fix.
    """
    if batch_size % (micro_batch_size * total):
        fitting = [
            size for size in range(micro_batch_size, 0, -1) if batch_size % (size * total) == 0
        ]
        fix = (
            f"set data.micro_batch_size to {fitting[0]}"
            if fitting
            else f"set data.batch_size to a multiple of {total}"
        )
        raise RequestError(
            f"data.batch_size counts the sequences of all devices, so it must be a multiple of "
            f"data.micro_batch_size times the number of devices, got {batch_size}, "
            f"{micro_batch_size} and {total}; {fix}."
        )


def make_strategy(name: str) -> Strategy:
    """Return the strategy of a run on several devices.

    Args:
        name: ``fsdp`` shards the model; by others only gradients of trained parameters travel.
    """
    if name == FSDP:
        return Sharded()
    return DDPStrategy(find_unused_parameters=False, forward_sync_buffers=False)
