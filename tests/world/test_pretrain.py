import pytest
import torch

from sft_lab.world.pretrain import BLOCK_LENGTH, Muon, blocks, orthogonalise, schedule
from sft_lab.world.tokenizer import train_tokenizer


def test_orthogonalise_brings_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 24, 8, generator=generator)
    for given in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalise(given))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_orthogonalise_keeps_singular_vectors() -> None:
    left, _, right = torch.linalg.svd(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    matrix = left @ torch.diag(torch.tensor([6.0, 5, 4, 3, 2, 1])) @ right
    turned = left.mT @ orthogonalise(matrix[None])[0] @ right.mT
    assert (turned - torch.diag(turned.diag())).abs().max() < 1e-4


def test_muon_steps_by_the_learning_rate_whatever_the_gradient() -> None:
    for scale in (1e-3, 1e3):
        param = torch.nn.Parameter(torch.zeros(8, 4))
        param.grad = scale * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        Muon([param], lr=0.1).step()
        # Twice as many rows as columns: the learning rate counts sqrt(2) times.
        values = torch.linalg.svdvals(param.detach()) / (0.1 * 2**0.5)
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_schedule_warms_up_and_falls_to_zero() -> None:
    factors = [schedule(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 5)  # 5 % of 100 steps
    assert factors[4] == pytest.approx(1)
    assert factors[52] == pytest.approx(48 / 95)
    assert factors[100] == 0


def test_blocks_hold_every_token_once_with_an_end_after_each_text() -> None:
    tokenizer = train_tokenizer(["abc"], vocab_size=261)  # bytes only: one token a letter
    texts = ["ab", "c"] * BLOCK_LENGTH
    found = list(blocks(texts, tokenizer))
    assert [block.shape for block in found] == [(BLOCK_LENGTH,)] * 5  # 5 tokens a pair
    assert tokenizer.decode(torch.cat(found)) == "ab<|end|>c<|end|>" * BLOCK_LENGTH
