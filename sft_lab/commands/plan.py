"""``fit --plan``: check a config as ``fit`` does and estimate what the run will cost."""

import argparse
import json
from dataclasses import replace
from typing import Any

from sft_lab.cost.known_speed import KnownSpeeds
from sft_lab.cost.measured_speed import measured_speed
from sft_lab.cost.run_cost import RunCost, run_cost, run_parameters
from sft_lab.errors import RequestError
from sft_lab.launch.build import build, plan_data
from sft_lab.launch.devices import check_share, check_sharing, num_ranks
from sft_lab.launch.limits import check_limits
from sft_lab.launch.parser import parse
from sft_lab.launch.run_config import RunConfig
from sft_lab.model.sharding import FSDP
from sft_lab.runs.machine import Machine, this_machine
from sft_lab.runs.store import RunStore
from sft_lab.terminal import counted, fitted_table, format_table, size_of, size_text, wrapped


def plan_fit(arguments: list[str]) -> str:
    """Return what a run will cost, as text or JSON.

    Args:
        arguments: Arguments of ``fit`` with ``--plan``; ``--measure`` loads the model and times it,
            ``--devices`` and ``--memory`` plan for devices that this machine lacks.

    Raises:
        RequestError: If ``fit`` would refuse the request.
    """
    flags = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for flag in ("--plan", "--json", "--measure"):
        flags.add_argument(flag, action="store_true")
    flags.add_argument("--devices")
    flags.add_argument("--memory")
    options, rest = flags.parse_known_args(arguments)
    memory = None if options.memory is None else size_of("--memory", options.memory)
    asked = None if options.devices is None else _count(options.devices)
    config = parse(rest)
    for option, value in (("ckpt_path", config.ckpt_path), ("from", config.fork_from)):
        if value is not None:
            raise RequestError(f"--plan describes a whole run; leave out --{option}.")
    num_devices = asked or num_ranks(config.values.trainer.as_dict())
    if options.measure and (asked or memory or num_devices > 1):
        raise RequestError(
            "--measure times one device of this machine; leave out --devices and --memory, and set "
            "trainer.devices to 1."
        )
    check_sharing(str(config.values.trainer.strategy), num_devices)
    check_share(config.values.data.batch_size, config.values.data.micro_batch_size, num_devices)
    cost = planned_cost(config, measure=options.measure, num_devices=num_devices)
    machine = this_machine()
    if memory is not None:  # other devices, whose speed no run of this machine shows
        cost = replace(cost, minutes=None)
        machine = Machine(f"a device of {size_text(memory)}", memory, memory)
    if options.json:
        return json.dumps({**plan_json(cost, machine), "devices": num_devices}, indent=2)
    return plan_text(cost, machine, num_devices, sharded=config.model_settings.sharded)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise RequestError(f"--devices must be a number of devices, 1 or more, got {text}.")
    return int(text)


def planned_cost(config: RunConfig, *, measure: bool = False, num_devices: int = 1) -> RunCost:
    """Return what a run will cost, without training or recording anything.

    Args:
        config: The run's config.
        measure: Load the model and time it instead of relying on earlier runs.
        num_devices: Number of devices that share a batch.
    """
    settings = config.model_settings
    if measure:
        run = build(config)
        run.data.setup("fit")
        check_limits(run.data, settings.base)
        items = run_cost(run.data, settings).evaluations.generated_tokens
        speed = measured_speed(run.module, run.data, str(run.trainer.precision), items)
        return run_cost(run.data, settings, speed, num_devices)
    data = plan_data(config)
    check_limits(data, settings.base)
    known = KnownSpeeds(RunStore(config.tracking_uri))
    earlier = known.speed(run_parameters(data, settings, num_devices))
    return run_cost(data, settings, earlier, num_devices)


def plan_json(cost: RunCost, machine: Machine) -> dict[str, Any]:
    """Return a run's cost as plain values; memory in bytes."""
    duration = cost.minutes
    return {
        "stages": {name: vars(stage) for name, stage in cost.stages.items()},
        "steps": cost.steps,
        "samples": cost.samples,
        "tokens": cost.tokens,
        "target_tokens": cost.target_tokens,
        "evaluations": {
            **vars(cost.evaluations),
            "total_generated_tokens": cost.evaluations.total_generated_tokens,
        },
        "parameters": cost.parameters,
        "trained_parameters": cost.trained_parameters,
        "memory": cost.memory.to_json(),
        "micro_batch_bytes": {str(m): total for m, total in cost.micro_batch_bytes.items()},
        "by_strategy": dict(cost.by_strategy),
        "machine": vars(machine),
        "largest_micro_batch_size": cost.largest_micro_batch_size(machine.free),
        "minutes": None
        if duration is None
        else {
            "training": duration.training,
            "evaluation": duration.evaluation,
            "total": duration.total,
            "source": duration.source,
        },
    }


def plan_text(
    cost: RunCost, machine: Machine, num_devices: int = 1, *, sharded: bool = False
) -> str:
    """Return a run's cost as text.

    Args:
        cost: The cost.
        machine: A device.
        num_devices: Number of such devices that share a batch.
        sharded: Whether the model is sharded over them.
    """
    header = ["stage", "steps", "passes", "samples", "tokens", "trained tokens"]
    rows = [
        [name, *(f"{n:,}" for n in (s.steps, s.passes, s.samples, s.tokens, s.target_tokens))]
        for name, s in cost.stages.items()
    ]
    totals = (cost.steps, cost.samples, cost.tokens, cost.target_tokens)
    steps, *others = (f"{n:,}" for n in totals)
    rows.append(["all", steps, "-", *others])
    done = cost.evaluations
    evaluations = (
        f"{counted(done.total, 'evaluation')}: {done.full} on all {counted(done.items, 'item')}, "
        f"{done.between} between stage boundaries; at most "
        f"{counted(done.generated_tokens, 'token is', 'tokens are')} generated in each"
    )
    table = fitted_table(header, rows)
    memory = _memory_text(cost, machine, num_devices, sharded=sharded)
    return "\n\n".join(
        [table, wrapped(evaluations), memory, wrapped(_time_text(cost, num_devices))]
    )


def _memory_text(cost: RunCost, machine: Machine, num_devices: int, *, sharded: bool) -> str:
    m = cost.memory
    strategy = "FSDP" if sharded else "DDP"
    each = f"of each of {num_devices} devices ({strategy})" if num_devices > 1 else ""
    parts = {
        f"base weights ({cost.parameters:,} parameters)": m.weights,
        f"adapters ({cost.trained_parameters:,} parameters)": m.adapters,
        "gradients": m.gradients,
        "optimizer state": m.optimizer,
        "gradients under way to other devices": m.exchanged,
        "whole weights and gradients of a layer at a time": m.gathered,
        "training: activations": m.activations,
        "training: backward pass": m.backward,
        "evaluation: weights": m.evaluation_weights,
        "evaluation: keys and values": m.kv_cache,
        "evaluation: activations and logits": m.evaluation_work,
        "at most (training and evaluation take turns)": m.total,
    }
    table = format_table(
        [f"memory {each}".rstrip(), "size"],
        [[name, size_text(size)] for name, size in parts.items() if size],
    )
    fits = m.total <= machine.free
    largest = cost.largest_micro_batch_size(machine.free)
    advice = (
        f"the largest data.micro_batch_size that fits is {largest}"
        if largest is not None
        else "no data.micro_batch_size fits"
    )
    free = (
        f"{machine.name}: {size_text(machine.free)} of {size_text(machine.memory)} are free; the "
        f"run {'fits' if fits else 'does not fit'}, and {advice}"
    )
    return "\n".join([table, wrapped(free), *_strategies(cost, machine)])


def _strategies(cost: RunCost, machine: Machine) -> list[str]:
    """Return a line on what each strategy of several devices takes, if there are several."""
    parts = [
        f"{name} takes {size_text(total)} and {'fits' if total <= machine.free else 'does not fit'}"
        for name, total in cost.by_strategy.items()
    ]
    if not parts:
        return []
    if FSDP not in cost.by_strategy:
        parts.append(f"{FSDP} does not shard such a model")
    return [wrapped(f"by trainer.strategy: {'; '.join(parts)}")]


def _time_text(cost: RunCost, num_devices: int) -> str:
    duration = cost.minutes
    if duration is None and num_devices > 1:
        return f"time: unknown, no earlier run of this base on {num_devices} devices like these"
    if duration is None:
        return (
            "time: unknown, no earlier run of this base on this machine; --measure loads the model "
            "and times it"
        )
    evaluation = (
        "evaluation unknown"
        if duration.evaluation is None
        else f"evaluation {duration.evaluation:,.1f} min"
    )
    return (
        f"time: {duration.total:,.1f} min: training {duration.training:,.1f} min, {evaluation}; "
        f"estimated from {duration.source}"
    )
