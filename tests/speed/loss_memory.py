"""Measure the peak memory of the loss: all logits at once, in chunks, and TRL's.

    python tests/speed/loss_memory.py --vocab 150000 --targets 2048

A micro-batch of a random model of one layer with a large vocabulary runs forward and backward; the
peak of what torch allocates during it is measured by the profiler, and the seconds it takes. An
interpreter that has TRL as well measures the loss of its ``SFTTrainer``, which is in chunks too.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from sft_lab.model.logits import HiddenStates, hidden_states
from sft_lab.terminal import format_table


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=150_000)
    parser.add_argument("--targets", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    args = parser.parse_args()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.hidden,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).requires_grad_(False)
    model.model.layers.requires_grad_(True)
    input_ids = torch.randint(args.vocab, (1, args.targets))
    position_ids, places = torch.arange(args.targets)[None], torch.arange(args.targets)

    def step(loss: Callable[[HiddenStates], Any]) -> None:
        loss(hidden_states(model, input_ids, position_ids, places)).sum().backward()

    def at_once(states: HiddenStates) -> Any:
        return functional.cross_entropy(states.logits().float(), input_ids[0], reduction="none")

    steps = {
        "at once": partial(step, at_once),
        "in chunks": partial(step, lambda states: states.nll(input_ids[0])),
    }
    if find_spec("trl"):
        from trl.trainer.utils import add_fused_lm_head

        # Its targets are those after the first token, one fewer.
        theirs = deepcopy(model)
        add_fused_lm_head(theirs, outputs=("log_probs", "entropy", "is_top1"))
        count = torch.tensor(1)
        steps["TRL"] = lambda: theirs(
            input_ids, labels=input_ids, fused_lm_head=True, num_items_in_batch=count
        ).loss.backward()
    gradients, rows = [], []
    for name, run in steps.items():
        model.zero_grad()
        run()
        if name != "TRL":
            layers = model.model.layers.parameters()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in layers]))
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peak = peak_bytes(run) / 2**20
        rows.append([name, f"{peak:.0f}", f"{seconds:.2f}"])
    off = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    print(format_table(["loss", "peak MiB", "seconds"], rows))
    print(f"gradients differ by {off:.1e} of their norm")


def peak_bytes(step: Callable[[], None]) -> int:
    """Return the peak of a function's allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    taken = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in taken]).max())


if __name__ == "__main__":
    main()
