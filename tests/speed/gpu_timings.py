"""The timings of ``gpu.py``: training, evaluation, and a run on two devices."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import generation
import sft_trainer
import torch
from gpu_bench import CLOSE, CUDA, Bench, Entry, Row, free
from sft_workload import Case

from sft_lab.commands.main import main as run_command
from sft_lab.data.rendering import Renderer
from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.evaluation.generation import TransformersContinuous
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.qlora import compute_dtype, load_base
from sft_lab.model.unquantized import EvaluationWeights
from sft_lab.runs.store import RunStore

TORCHTUNE = (  # adapters and batches of its recipe llama2/7B_qlora_single_device
    "data.batch_size=32",
    "data.micro_batch_size=2",
    "model.gradient_checkpointing=true",
    "model.lora={r: 8, lora_alpha: 16}",
)


def timings(bench: Bench) -> list[Entry]:
    checkpointing = "model.gradient_checkpointing=true"
    trainings = [
        ("0.5B, padded", "0.5B", False, (), True),
        ("0.5B, padded, checkpointing", "0.5B", False, (checkpointing,), False),
        ("0.5B, padding-free", "0.5B", False, ("data.padding_free=true",), False),
        ("0.5B, padded, fused LoRA", "0.5B", False, ("model.fused_lora=true",), False),
        ("0.5B, padded, dequantised", "0.5B", False, ("model.dequantize=cached",), False),
        ("0.5B, packed", "0.5B", True, (), True),
        ("0.5B, packed, checkpointing", "0.5B", True, (checkpointing,), False),
        ("7B, padded, as torchtune's QLoRA recipe", "7B", False, TORCHTUNE, True),
        ("7B, packed, checkpointing", "7B", True, (checkpointing,), True),
    ]

    def train(what: str, base: str, packing: bool, more: Sequence[str], trl: bool) -> Iterator[Row]:
        case = bench.case(base, 20 if base == "0.5B" else 7, *more, packing=packing)
        yield from time_training(bench, f"training {what}", case, trl=trl)

    return [
        *((f"training {training[0]}", partial(train, *training)) for training in trainings),
        ("evaluation", partial(time_evaluation, bench)),
        *((f"devices {name}", partial(time_devices, bench, name)) for name in ("ddp", "fsdp")),
    ]


def time_training(bench: Bench, what: str, case: Case, *, trl: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        rows = f"{folder}/rows.json"
        sft_trainer.write_rows(case, folder, rows)
        free()
        ours = sft_trainer.time_lab(case, folder, rows)
        yield Row(what, speed(ours))
        if not trl:
            return
        if subprocess.run([bench.trl_python, "-c", "import trl"], capture_output=True).returncode:
            yield Row(f"{what}, TRL", outcome="not timed: TRL is not installed")
            return
        free()
        theirs = sft_trainer.in_process("trl", bench.trl_python, case, rows)
    ratio = ours["tokens"] / ours["wall"] / (theirs["tokens"] / theirs["wall"])
    yield Row(f"{what}, TRL", speed(ours), speed(theirs), f"{ratio:.2f}x")


def speed(found: dict[str, Any]) -> str:
    memory = found["memory"] / 2**30
    return f"{found['tokens'] / found['wall']:,.0f} tokens/s, {memory:.1f} GiB"


def time_evaluation(bench: Bench) -> Iterator[Row]:
    """Time the engines on a base with fresh adapters; the answers go to their limits."""
    base = bench.base("0.5B")
    dtype = compute_dtype("bf16-true" if CUDA else "32-true")
    model = add_adapters(load_base(base, "nf4", dtype), Lora(r=32, lora_alpha=64), seed=0)
    renderer = Renderer(load_tokenizer(base), template=None)
    number, batch_size = (4, 4) if bench.tiny else (64, 64)
    prompts = {limit: some[:number] for limit, some in generation.read_prompts(renderer).items()}
    settings = (model, prompts, renderer, batch_size)

    def theirs(weights: EvaluationWeights) -> generation.Answers:
        return generation.theirs(*settings, weights, dtype, longest_first=True)

    ways: dict[str, Callable[[], generation.Answers]] = {
        "transformers, live": partial(theirs, "live"),
        generation.MERGED: partial(theirs, "merged"),
    }
    for weights in ("live", "dequantized", "merged"):
        ways[f"native, {weights}"] = partial(generation.ours, *settings, weights, dtype)
    if CUDA:
        ways["transformers_continuous"] = partial(continuous, *settings)
    table = generation.measure(ways, 1 if bench.tiny else 2)
    for name, _, _, tokens, times, _, alike in table:
        shown = f"{times}x, {alike} the same"
        yield Row(f"0.5B, {name}", f"{tokens} tokens/s", generation.MERGED, shown)
    yield Row("0.5B, vllm", outcome="not timed: it answers from a server")


def continuous(
    model: Any, prompts: generation.Prompts, renderer: Renderer, batch_size: int
) -> generation.Answers:
    """Answer by transformers' continuous batching."""
    engine, answers = TransformersContinuous(batch_size), []
    for limit, some in prompts.items():
        answers += engine.complete(
            model,
            some,
            max_new_tokens=limit,
            eos_token_ids=renderer.stop_token_ids,
            pad_token_id=renderer.pad_token_id,
            decode=lambda ids: " ".join(map(str, ids)),
        )
    return [[int(token) for token in answer.split()] for answer in answers]


def time_devices(bench: Bench, strategy: str) -> Iterator[Row]:
    """Time a run on two devices against one; without CUDA, on two processes against one."""
    what = f"0.5B on two devices, {strategy}"
    if CUDA and torch.cuda.device_count() < 2:
        yield Row(what, outcome="not timed: one device")
        return
    more = ["trainer.log_every_n_steps=1", "data.micro_batch_size=4"]
    if strategy == "fsdp":  # takes no NF4
        more.append(f"model.quantization={'bf16' if CUDA else 'fp32'}")
    found = []
    for devices in ([], ["trainer.devices=2", f"trainer.strategy={strategy}"]):
        case = bench.case("0.5B", 20, *more, *devices, packing=False)
        with tempfile.TemporaryDirectory() as folder:
            if run_command(["fit", *case.arguments(folder)]):
                raise RuntimeError(f"fit failed with {' '.join(devices) or 'one device'}")
            store = RunStore(f"sqlite:///{folder}/mlflow.db")
            (run,) = store.runs()
            keys = ("speed/tokens_per_s", "train_loss/all")
            found.append([points(store, run.info.run_id, key) for key in keys])
    (one, losses_of_one), (two, losses_of_two) = found
    speeds = [median(values[sft_trainer.WARM_UP :]) for values in (one, two)]
    apart = max(abs(a - b) for a, b in zip(losses_of_one, losses_of_two, strict=True))
    shown = [f"{tokens:,.0f} tokens/s" for tokens in speeds]
    outcome = f"{speeds[1] / speeds[0]:.2f}x, losses {apart:.1e} apart"
    fine = apart <= CLOSE[torch.bfloat16 if CUDA else torch.float32]
    yield Row(what, shown[1], f"one: {shown[0]}", outcome, failed=not fine)


def points(store: RunStore, run_id: str, key: str) -> list[float]:
    history = store.client.get_metric_history(run_id, key)
    return [point.value for point in sorted(history, key=lambda point: point.step)]
