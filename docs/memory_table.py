"""Print the table of docs/devices.md: a training step's memory on each device, by size of the base.

    python docs/memory_table.py

No weights are loaded: sizes come from configs of Llama's shapes. Source: Touvron et al. 2023,
"LLaMA", table 2, and "Llama 2" for 70B, with 8 groups of keys and values.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaConfig

from sft_lab.model.adapter_config import Lora
from sft_lab.model.memory import optimizer_bytes
from sft_lab.model.qlora import Quantization
from sft_lab.model.size import model_size

# Hidden size, inner size, layers, heads, heads of keys and values.
BASES = {
    "7B": (4096, 11008, 32, 32, 32),
    "13B": (5120, 13824, 40, 40, 40),
    "33B": (6656, 17920, 60, 52, 52),
    "70B": (8192, 28672, 80, 64, 8),
}
CARDS_GIB = (24, 48, 80)
SHARDED_OVER = (2, 4, 8)
TOKENS, TARGET_TOKENS = 2048, 512
LORA = Lora(r=64, lora_alpha=16)
METHODS: dict[str, tuple[Quantization, Lora | None, str]] = {
    "QLoRA, NF4": ("nf4", LORA, "bf16-mixed"),
    "LoRA, bf16": ("bf16", LORA, "bf16-true"),
    "full, bf16": ("bf16", None, "bf16-true"),
}


@dataclass(frozen=True)
class Step:
    """The peak of a training step with checkpointed activations on each device, in GiB.

    Attributes:
        alone: On one device.
        ddp: On each of several that hold the whole model.
        fsdp: On each of so many that the model is sharded over; none in 4 bits.
    """

    alone: float
    ddp: float
    fsdp: dict[int, float]

    def fits(self, card: int) -> str:
        """Return on how many cards of a size the step fits."""
        if self.ddp <= card:
            return "yes"
        sharded = next((f"FSDP on {n}" for n, size in self.fsdp.items() if size <= card), None)
        alone = "one card only" if self.alone <= card else None
        return ", or ".join(filter(None, (alone, sharded))) or "no"


def step_of(base: str, method: str) -> Step:
    """Return the memory of a step of a base, whose folder holds its config."""
    quantization, lora, precision = METHODS[method]
    size = model_size(base, quantization, lora, precision)
    adapters = size.trained_bytes if size.is_adapted else 0
    resident = size.weights + adapters + size.trained_bytes
    resident += optimizer_bytes(size.trained, "adamw")
    step = size.kept(TOKENS, checkpointing=True)
    step += size.backward(TOKENS, TARGET_TOKENS, in_chunks=True)
    devices = () if quantization == "nf4" else SHARDED_OVER
    return Step(
        alone=(resident + step) / 2**30,
        ddp=(resident + size.trained_bytes + step) / 2**30,  # which holds gradients twice
        fsdp={n: (resident / n + size.gathered + step) / 2**30 for n in devices},
    )


def save_config(folder: Path, shape: tuple[int, int, int, int, int]) -> None:
    """Write the config of a base."""
    hidden, inner, layers, heads, groups = shape
    LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=4096,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


def table(bases: dict[str, tuple[int, int, int, int, int]] = BASES) -> str:
    """Return the table as Markdown."""
    cards = " | ".join(f"{card} GiB" for card in CARDS_GIB)
    lines = [
        f"| base | method | one device | of each, DDP | of each of 4, of 8, FSDP | {cards} |",
        "|---" * (5 + len(CARDS_GIB)) + "|",
    ]
    for name, shape in bases.items():
        with tempfile.TemporaryDirectory() as folder:
            save_config(Path(folder), shape)
            for method in METHODS:
                step = step_of(folder, method)
                found = " | ".join(step.fits(card) for card in CARDS_GIB)
                sharded = ", ".join(f"{step.fsdp[n]:.1f}" for n in (4, 8) if step.fsdp)
                fsdp = f"{sharded} GiB" if sharded else "-"
                sizes = f"{step.alone:.1f} GiB | {step.ddp:.1f} GiB | {fsdp}"
                lines.append(f"| {name} | {method} | {sizes} | {found} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
