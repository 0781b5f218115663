import pytest
import torch

from sft_lab.metrics.token_loss import TokenLoss


def test_batches_weigh_by_their_tokens() -> None:
    loss = TokenLoss()
    loss.update(nll_sum=torch.tensor(8.0), num_tokens=2)
    loss.update(nll_sum=torch.tensor(8.0), num_tokens=torch.tensor(8))
    assert loss.compute().item() == pytest.approx(1.6)  # averaging batch means gives 2.5


def test_many_small_losses_are_not_lost() -> None:
    loss = TokenLoss()
    loss.update(torch.tensor(2.0**24), 1)
    loss.update(torch.tensor(1.0), 1)
    assert loss.compute().item() == (2**24 + 1) / 2  # float32 has no 2^24 + 1


def test_sums_survive_a_module_in_low_precision() -> None:
    loss = torch.nn.ModuleDict({"loss": TokenLoss()}).to(torch.bfloat16)["loss"]
    for _ in range(300):
        loss.update(torch.tensor(1.0), 1)
    assert loss.compute().item() == 1.0
    loss.reset()
    for _ in range(300):
        loss.update(torch.tensor(1.0), 1)
    assert loss.compute().item() == 1.0


def test_loss_keeps_no_graph() -> None:
    loss = TokenLoss()
    loss.update(torch.tensor(1.0, requires_grad=True), 1)
    assert not loss.compute().requires_grad
