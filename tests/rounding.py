"""Compare runs that differ only in the order in which they add up the same gradients."""

from dataclasses import dataclass

import torch
from tiny_lab import Lab
from torch import Tensor

ROOM = 10
"""Two orders differ by chance, and so do two others; the second pair may be as much further apart.

Rounding grows over the steps of a run, in both pairs alike: what is compared with it is measured on
the same run, at the same steps.
"""


@dataclass(frozen=True)
class Numbers:
    """A run's losses, by key and step, and the weights that it has trained."""

    losses: dict[str, dict[int, float]]
    weights: Tensor


def numbers(lab: Lab, run_id: str | None = None) -> Numbers:
    """Return the numbers of a run; by default of the only one."""
    run_id = run_id or lab.run.info.run_id
    keys = lab.store.client.get_run(run_id).data.metrics
    path = lab.folder / "mlruns/checkpoints" / run_id / "last.ckpt"
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return Numbers(
        {key: lab.points(key, run_id) for key in sorted(keys) if "_loss/" in key},
        torch.cat([weight.flatten() for _, weight in sorted(state.items())]),
    )


def differences(these: Numbers, those: Numbers) -> dict[str, float]:
    """Return the largest difference of each loss, and of the weights."""
    assert these.losses.keys() == those.losses.keys()
    found = {}
    for key, points in these.losses.items():
        others = those.losses[key]
        assert list(points) == list(others), key
        found[key] = max(abs(points[step] - others[step]) for step in points)
    return found | {"weights": (these.weights - those.weights).abs().max().item()}


def assert_equal_within_rounding(found: Numbers, one: Numbers, regrouped: Numbers) -> None:
    """Compare a run with the same run on one device.

    Args:
        found: The run.
        one: The run on one device.
        regrouped: The run on one device with other micro-batches: how far another order of the
            same sums leads by rounding alone.
    """
    largest = max(max(points.values()) for points in one.losses.values())
    last_bit = torch.finfo(torch.float32).eps * largest  # of losses that both orders happen to give
    rounding, apart = differences(one, regrouped), differences(found, one)
    assert 0 < rounding["weights"] < 1e-4
    for key, difference in apart.items():
        assert difference <= ROOM * rounding[key] + last_bit * (key != "weights"), key
