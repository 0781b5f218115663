"""The loss of a data set, in which every target token has the same weight in any batch."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override


class TokenLoss(Metric):
    """Negative log-likelihood in nats per target token, float64; nan before the first token.

    >>> loss = TokenLoss()
    >>> loss.update(nll_sum=torch.tensor(6.0), num_tokens=3)
    >>> loss.update(nll_sum=torch.tensor(1.0), num_tokens=1)
    >>> loss.compute()
    tensor(1.7500, dtype=torch.float64)
    """

    higher_is_better = False
    full_state_update = False
    nll_sum: Tensor
    num_tokens: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nll_sum", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, nll_sum: Tensor, num_tokens: Tensor | int) -> None:
        # Not in place: module.to(torch.bfloat16) converts the sum too, and there 256 + 1 is 256.
        self.nll_sum = self.nll_sum.double() + nll_sum.detach().double()
        self.num_tokens = self.num_tokens + num_tokens

    @override
    def compute(self) -> Tensor:
        return self.nll_sum.double() / self.num_tokens
