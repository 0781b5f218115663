"""Compute a run's device memory from the sizes of its model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from sft_lab.model.logits import CHUNK_LOGITS

NF4_BLOCK = 64  # weights that share a scale, which is a byte
_SCALES_BLOCK = 256  # scales that share a float32, by double quantisation
_NF4_TABLES = 4 * (16 + 256 + 1)  # codes of weights and scales, and the scales' mean
_LOSS_BYTES = 12  # per logit: float32 log-probabilities, and two of their gradients


def nf4_bytes(numel: int) -> int:
    """Return the bytes of one layer's weight in NF4 with double quantisation.

    Source: Dettmers et al. 2023, "QLoRA", section 3; with bitsandbytes' block sizes.

    >>> nf4_bytes(64 * 256)  # 8192 packed, 256 scales, one scale of scales
    9544
    """
    scales = ceil(numel / NF4_BLOCK)
    return ceil(numel / 2) + scales + 4 * ceil(scales / _SCALES_BLOCK) + _NF4_TABLES


def int8_bytes(out_features: int, in_features: int) -> int:
    """Return the bytes of one layer's weight in 8 bits, with a float32 scale for every row.

    >>> int8_bytes(2, 3)
    14
    """
    return out_features * in_features + 4 * out_features


def optimizer_bytes(tensors: Sequence[tuple[int, int]], optimizer: str) -> int:
    """Return the bytes of an optimizer's two moments.

    Args:
        tensors: Number of elements and bytes of each, of every trained tensor.
        optimizer: ``adamw`` keeps moments of the tensor's type and a step; ``paged_adamw_8bit``
            keeps bytes with a float32 scale per 256, and float32 for small tensors.

    >>> optimizer_bytes([(1000, 4)], "adamw")
    8004
    >>> optimizer_bytes([(1000, 4), (25600, 4)], "paged_adamw_8bit")
    60000
    """
    if optimizer == "adamw":
        return sum(2 * numel * size + 4 for numel, size in tensors)
    return sum(
        2 * numel + 8 * ceil(numel / 256) if numel >= 4096 else 8 * numel for numel, _ in tensors
    )


@dataclass(frozen=True)
class ModelSize:
    """Hold the sizes of a model under training, in bytes unless stated otherwise.

    Attributes:
        weights: The loaded base.
        parameters: Number of the base's parameters.
        trained: Number of elements and bytes of each, of every trained tensor.
        is_adapted: Whether adapters are trained, or else the base itself.
        num_layers: Number of the decoder's layers.
        saved_per_token: Saved by a forward pass for the backward pass, per token.
        saved_always: Saved by it for any number of tokens.
        hidden_per_token: A layer's output, per token.
        widest_per_token: The widest activation inside a layer, per token.
        dequantized: All 4-bit layers in the type of matrix products.
        largest_dequantized: The largest of them, dequantised for every product.
        merged: The base in the type of matrix products.
        logit: One logit.
        vocab_size: Number of logits per token.
        kv_per_token: Keys and values of one token in all layers.
        gathered: What a device holds whole, for a time, of a sharded model.
    """

    weights: int
    parameters: int
    trained: tuple[tuple[int, int], ...]
    is_adapted: bool
    num_layers: int
    saved_per_token: float
    saved_always: float
    hidden_per_token: int
    widest_per_token: int
    dequantized: int
    largest_dequantized: int
    merged: int
    logit: int
    vocab_size: int
    kv_per_token: int
    gathered: int

    @property
    def trained_parameters(self) -> int:
        """Return the number of trained parameters."""
        return sum(numel for numel, _ in self.trained)

    @property
    def trained_bytes(self) -> int:
        """Return the bytes of the trained tensors, which equal those of their gradients."""
        return sum(numel * size for numel, size in self.trained)

    def kept(self, tokens: int, *, checkpointing: bool) -> int:
        """Return the bytes that a forward pass keeps for the backward pass.

        Args:
            tokens: Tokens of the micro-batch, padding included.
            checkpointing: Keep only the layers' inputs, and one layer's activations at a time.
        """
        kept = self.saved_always + self.saved_per_token * tokens
        if checkpointing:
            kept = kept / self.num_layers + self.num_layers * self.hidden_per_token * tokens
        return ceil(kept)

    def backward(self, tokens: int, target_tokens: int, *, in_chunks: bool) -> int:
        """Return the peak bytes of a backward pass besides the kept ones: of a layer or the loss.

        A layer needs its values and their gradients, the loss the logits of target tokens.

        Args:
            tokens: Tokens of the micro-batch, padding included.
            target_tokens: Its target tokens.
            in_chunks: Whether no more than a chunk of logits is held at a time.
        """
        layer = (3 * self.widest_per_token + 2 * self.hidden_per_token) * tokens
        held = self._logits(target_tokens) if in_chunks else target_tokens * self.vocab_size
        loss = held * _LOSS_BYTES
        return max(layer + self.largest_dequantized, loss)

    def forward(self, tokens: int) -> int:
        """Return the bytes of a forward pass that keeps nothing: one layer's values."""
        layer = 4 * (self.widest_per_token + self.hidden_per_token) * tokens
        return layer + self.largest_dequantized

    def validation_loss(self, target_tokens: int) -> int:
        """Return the bytes of a loss without backward pass: logits, in float32, and their log."""
        widened = 0 if self.logit == 4 else 4
        return self._logits(target_tokens) * (self.logit + widened + 4)

    def _logits(self, target_tokens: int) -> int:
        """Return the number of logits that a loss in chunks holds at a time."""
        return min(target_tokens, max(1, CHUNK_LOGITS // self.vocab_size)) * self.vocab_size


@dataclass(frozen=True)
class Memory:
    """Hold the peak bytes of a run on its device, by part, without the program itself.

    Training and evaluation alternate, and the weights are resident during both.

    Attributes:
        weights: The base, quantised, and its dequantised weights if they are kept.
        adapters: The LoRA adapters.
        gradients: The gradients of the trained tensors.
        optimizer: The optimizer's state.
        activations: Activations kept for the backward pass of the largest micro-batch.
        backward: Peak of that backward pass besides the activations.
        evaluation_weights: The copy of the weights that an evaluation generates with.
        kv_cache: Keys and values of the largest batch of answers.
        evaluation_work: Activations and logits of an evaluation.
        exchanged: DDP's copy of the gradients, which it sums over devices; 0 on one device.
        gathered: Whole weights and gradients under FSDP, which shards all others; 0 without it.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    backward: int
    evaluation_weights: int
    kv_cache: int
    evaluation_work: int
    exchanged: int = 0
    gathered: int = 0

    @property
    def resident(self) -> int:
        """Return the bytes held for the whole run."""
        parts = self.weights, self.adapters, self.gradients, self.optimizer
        return sum(parts) + self.exchanged + self.gathered

    @property
    def training(self) -> int:
        """Return the bytes of a training step besides the resident ones."""
        return self.activations + self.backward

    @property
    def evaluating(self) -> int:
        """Return the bytes of an evaluation besides the resident ones."""
        return self.evaluation_weights + self.kv_cache + self.evaluation_work

    @property
    def total(self) -> int:
        """Return the peak of the run."""
        return self.resident + max(self.training, self.evaluating)

    def on_each_of(self, num_devices: int, size: ModelSize, *, sharded: bool) -> "Memory":
        """Return the memory of each of several devices that share a run's batch.

        Args:
            num_devices: Number of devices.
            size: The sizes of the model.
            sharded: Whether the model is sharded over them; each holds it whole otherwise.
        """
        if num_devices == 1:
            return self
        if not sharded:
            return replace(self, exchanged=size.trained_bytes)
        names = ("weights", "adapters", "gradients", "optimizer")
        shards = {name: ceil(getattr(self, name) / num_devices) for name in names}
        return replace(self, **shards, gathered=size.gathered)

    def to_json(self) -> dict[str, Any]:
        """Return parts and sums by name."""
        sums = {"training": self.training, "evaluating": self.evaluating, "total": self.total}
        return asdict(self) | sums
