"""Signs that a run learns nothing: in its losses, and in its weights."""

import math
from collections import deque
from typing import Any

import torch

from sft_lab import distributed
from sft_lab.model.qlora import plain_causal_lm
from sft_lab.model.sharding import local_part

_STUCK_STEPS = 5
_NATS = 1e-3


class LossWatch:
    """Notice a loss that stays where it is, or where a guess among all tokens would be.

    Args:
        num_tokens: Size of the model's vocabulary.
    """

    def __init__(self, num_tokens: int) -> None:
        self.guess = math.log(num_tokens)
        self._last: deque[float] = deque(maxlen=_STUCK_STEPS)

    def see(self, loss: float) -> str | None:
        """Return what is wrong, if the losses of the last steps were all the same or a guess's.

        >>> watch = LossWatch(num_tokens=256)
        >>> [watch.see(0.0) for _ in range(5)][-1]
        'the loss is constant, 0.0 in each of the last 5 steps'

        Args:
            loss: Nats per target token of an optimizer step.
        """
        self._last.append(loss)
        if len(self._last) < _STUCK_STEPS:
            return None
        if len(set(self._last)) == 1:
            return f"the loss is constant, {loss} in each of the last {_STUCK_STEPS} steps"
        if all(abs(past - self.guess) < _NATS for past in self._last):
            return (
                f"the loss stays at {self.guess:.3f} nats, as if guessing among all tokens of the "
                "vocabulary"
            )
        return None


def vocabulary_size(model: Any) -> int:
    """Return over how many tokens a model's predictions are distributed."""
    return int(plain_causal_lm(model).get_output_embeddings().weight.shape[0])


def is_finite(model: Any) -> bool:
    """Return whether all trained weights are finite numbers, on all ranks."""
    trained = [local_part(p.detach()) for p in model.parameters() if p.requires_grad]
    # One transfer from the device, whatever the number of weights.
    are_finite = torch.stack([torch.isfinite(weight).all() for weight in trained]).all()
    return not distributed.largest(int(not are_finite))


def is_untrained(model: Any) -> bool:
    """Return whether a model has trained adapters whose B, 0 at the start, is 0 still."""
    second = [
        local_part(parameter.detach())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_B." in name
    ]
    is_trained = not second or bool(torch.stack([weight.any() for weight in second]).any())
    return not distributed.largest(int(is_trained))
