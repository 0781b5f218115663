"""What a run needs of a device's memory, as arithmetic on the sizes of its model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

NF4_BLOCK = 64  # weights that share a scale, which is a byte
_SCALES_BLOCK = 256  # scales that share a float32, by double quantisation
_NF4_TABLES = 4 * (16 + 256 + 1)  # the codes of weights and of scales, and the scales' mean
_LOSS_BYTES = 12  # float32 log-probabilities, and two gradients of them, for a logit


def nf4_bytes(numel: int) -> int:
    """Return the bytes of one layer's weight in NF4 with double quantisation.

    Source: Dettmers et al. 2023, "QLoRA", section 3; blocks as bitsandbytes has them.

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
            keeps bytes with a float32 scale for 256 of them, and float32 for small tensors.

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
    """The sizes of a model under training that decide what it takes; bytes where nothing is said.

    Attributes:
        weights: The base as it is loaded.
        parameters: How many parameters the base has.
        trained: Number of elements and bytes of each, of every trained tensor.
        is_adapted: Whether these are adapters beside the base, or the base itself.
        num_layers: How many layers the decoder has.
        saved_per_token: What a forward pass keeps for the backward pass, for each token.
        saved_always: What it keeps however few the tokens.
        hidden_per_token: A layer's output, for each token.
        widest_per_token: The widest activation inside a layer, for each token.
        dequantized: All layers in 4 bits, in the type that they compute in.
        largest_dequantized: The largest of them; made anew for every product.
        merged: The base in the type that it computes in.
        logit: One logit.
        vocab_size: Logits of a token.
        kv_per_token: Keys and values of one token in all layers.
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

    @property
    def trained_parameters(self) -> int:
        """How many parameters are trained."""
        return sum(numel for numel, _ in self.trained)

    @property
    def trained_bytes(self) -> int:
        """Bytes of what is trained, and of its gradients."""
        return sum(numel * size for numel, size in self.trained)

    def kept(self, tokens: int, *, checkpointing: bool) -> int:
        """Return what a forward pass keeps for the backward pass.

        Args:
            tokens: Tokens of the micro-batch, padding counted.
            checkpointing: Keep the inputs of layers only, and one layer's insides at a time.
        """
        kept = self.saved_always + self.saved_per_token * tokens
        if checkpointing:
            kept = kept / self.num_layers + self.num_layers * self.hidden_per_token * tokens
        return ceil(kept)

    def backward(self, tokens: int) -> int:
        """Return what the backward pass of one layer has in hand: values and their gradients."""
        return (
            3 * self.widest_per_token + 2 * self.hidden_per_token
        ) * tokens + self.largest_dequantized

    def forward(self, tokens: int) -> int:
        """Return what a forward pass has in hand where nothing is kept: one layer's values."""
        return (
            4 * self.widest_per_token + 4 * self.hidden_per_token
        ) * tokens + self.largest_dequantized

    def loss(self, target_tokens: int) -> int:
        """Return what the loss takes at its height, where its own backward pass begins."""
        return target_tokens * self.vocab_size * _LOSS_BYTES

    def validation_loss(self, target_tokens: int) -> int:
        """Return what the loss takes without a backward pass: logits, in float32, and their log."""
        widened = 0 if self.logit == 4 else 4
        return target_tokens * self.vocab_size * (self.logit + widened + 4)


@dataclass(frozen=True)
class Memory:
    """Bytes of a run on its device at its height, by part, without the program itself.

    Training and evaluation take turns, and the weights stand beside both.

    Attributes:
        weights: The base, as it was quantised.
        adapters: The LoRA adapters.
        gradients: Of what is trained.
        optimizer: The optimizer's state.
        activations: What the largest micro-batch keeps for its backward pass.
        backward: The most that this takes beside them: for the logits at target tokens and what
            the loss makes of them, or for one layer, whichever is more.
        evaluation_weights: The copy that an evaluation generates with.
        kv_cache: Keys and values of the most tokens that are answered at a time.
        evaluation_work: Activations and logits of an evaluation.
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

    @property
    def standing(self) -> int:
        """What is there all the time."""
        return self.weights + self.adapters + self.gradients + self.optimizer

    @property
    def training(self) -> int:
        """What a training step takes beside that."""
        return self.activations + self.backward

    @property
    def evaluating(self) -> int:
        """What an evaluation takes beside what is there all the time."""
        return self.evaluation_weights + self.kv_cache + self.evaluation_work

    @property
    def total(self) -> int:
        """The most at any moment."""
        return self.standing + max(self.training, self.evaluating)

    def to_json(self) -> dict[str, Any]:
        """Return parts and sums by name."""
        sums = {"training": self.training, "evaluating": self.evaluating, "total": self.total}
        return asdict(self) | sums
