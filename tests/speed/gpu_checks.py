"""The checks of ``gpu.py``: the device against the CPU. Without CUDA both are the CPU."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import sft_trainer
import torch
from gpu_bench import CLOSE, CUDA, Bench, Entry, Row
from torch import Tensor

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation import generate
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.kernels import check_attention
from sft_lab.model.qlora import load_base
from sft_lab.training.batches import Batch
from sft_lab.training.loss import read_targets

NO_CUDA = {"CUDA_VISIBLE_DEVICES": ""}


def checks(bench: Bench) -> list[Entry]:
    attentions = ["eager", "sdpa"]
    if CUDA:
        attentions += ["flex_attention", "flash_attention_2"]
    return [
        ("numbers", partial(check_numbers, bench)),
        *((f"packing {name}", partial(check_packing, bench, name)) for name in attentions),
        ("fit", partial(check_fit, bench)),
    ]


def numbers(base: str) -> dict[str, Any]:
    """Return losses, gradients and answers of a base in NF4 with LoRA on the device, if any."""
    model = add_adapters(load_base(base, "nf4", torch.float32), Lora(r=8), seed=0)
    random = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would leave A without a gradient
            weight.data = (torch.randn(weight.shape, generator=random) / 50).to(weight.device)
    ids = torch.randint(100, 500, (4, 64), generator=random)
    nll = losses(model, ids, torch.arange(64).expand(4, -1))
    nll.mean().backward()
    gradients = [p.grad.flatten().cpu() for p in model.parameters() if p.requires_grad]
    prompts = torch.randint(100, 500, (16, 12), generator=random).tolist()
    answers = generate(
        model, prompts, max_new_tokens=24, eos_token_ids=[0], pad_token_id=0, batch_size=8
    )
    return {"losses": nll.detach().cpu(), "gradients": torch.cat(gradients), "answers": answers}


def losses(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the loss of every token but the first of each row."""
    labels = ids.masked_fill(positions == 0, -100)
    places = (labels.flatten() != -100).nonzero().flatten()
    batch = {
        "input_ids": ids,
        "position_ids": positions,
        "labels": labels,
        "source_ids": torch.zeros_like(ids),
        "target_places": places,
        "window_target_tokens": torch.tensor(len(places)),
    }
    moved = {name: value.to(model.device) for name, value in batch.items()}
    return read_targets(model, cast(Batch, moved), ["all"]).nll


def check_numbers(bench: Bench) -> Iterator[Row]:
    base, file = bench.base("check"), bench.folder / "reference.pt"
    found = numbers(base)
    if CUDA:
        script = Path(__file__).with_name("gpu.py")
        command = [sys.executable, script, file, "--reference", base]
        subprocess.run(command, env={**os.environ, **NO_CUDA}, check=True)
        expected = torch.load(file)
    else:
        expected = numbers(base)
    apart = (found["losses"] - expected["losses"]).abs().max().item()
    yield checked("losses, NF4 + LoRA, float32", apart <= CLOSE[torch.float32], f"{apart:.1e} nats")
    cosine = torch.cosine_similarity(found["gradients"], expected["gradients"], dim=0).item()
    yield checked("gradients, NF4 + LoRA, float32", cosine > 0.9999, f"cosine {cosine:.6f}")
    alike = sum(map(list.__eq__, found["answers"], expected["answers"]))
    total = len(found["answers"])  # one may differ by a tie
    yield checked("greedy answers", alike >= total - 1, f"{alike} of {total} the same")


def check_packing(bench: Bench, attention: str) -> Iterator[Row]:
    """Compare the losses of rows that share a sequence with those of the rows alone."""
    base, what = bench.base("check"), f"packed rows apart, {attention}"
    try:
        check_attention(base, attention)
    except RequestError as fault:
        yield Row(what, outcome=f"not installed: {fault}")
        return
    dtype = torch.bfloat16 if "flash" in attention else torch.float32
    model = load_base(base, "bf16" if "flash" in attention else "fp32", dtype, attention)
    ids = torch.randint(100, 500, (2, 64), generator=torch.Generator().manual_seed(0))
    lengths = (23, 41)
    with torch.no_grad():
        parts = [part for row in ids for part in row.split(lengths)]
        alone = torch.cat([losses(model, p[None], torch.arange(len(p))[None]) for p in parts])
        restarting = torch.cat([torch.arange(length) for length in lengths])
        packed = losses(model, ids, restarting.expand(2, -1))
        seen = losses(model, ids, torch.arange(64).expand(2, -1)).view(2, -1)
    apart = (packed - alone).abs().max().item()
    # What rows that do see each other would show: the second row of each sequence.
    touching = (seen[:, lengths[0] :] - alone.view(2, -1)[:, lengths[0] - 1 :]).abs().max().item()
    fine = apart <= CLOSE[dtype] < touching
    yield checked(
        what, fine, f"{apart:.1e} nats; {touching:.1e} if they were not", "each row alone"
    )


def check_fit(bench: Bench) -> Iterator[Row]:
    case = bench.case("check", 10, packing=False, bf16=False)
    with tempfile.TemporaryDirectory() as folder:
        rows = f"{folder}/rows.json"
        sft_trainer.write_rows(case, folder, rows)
        found = sft_trainer.time_lab(case, f"{folder}/device", rows)
        if CUDA:
            expected = sft_trainer.in_process("lab", sys.executable, case, rows, NO_CUDA)
        else:
            expected = sft_trainer.time_lab(case, f"{folder}/cpu", rows)
    apart = max(abs(a - b) for a, b in zip(found["losses"], expected["losses"], strict=True))
    what = f"losses of {case.steps} steps of fit, float32"
    yield checked(what, apart <= CLOSE[torch.float32], f"{apart:.1e} nats")


def checked(what: str, fine: bool, found: str, against: str = "the CPU") -> Row:
    return Row(what, found, against, "equal" if fine else "DIFFERENT", failed=not fine)
