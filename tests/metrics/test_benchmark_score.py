import pytest
import torch

from sft_lab.metrics.benchmark_score import BenchmarkScore
from sft_lab.metrics.intervals import wilson


def test_uneven_batches_weigh_every_item_alike() -> None:
    score = BenchmarkScore()
    score.update([True, False])
    score.update([True])
    assert score.compute().item() == pytest.approx(2 / 3)  # averaging batches gives 3 / 4
    assert score.num_examples == 3
    assert score.interval() == wilson(2, 3)


def test_reset_forgets() -> None:
    score = BenchmarkScore()
    score.update([True])
    score.reset()
    score.update([False, False])
    assert score.compute().item() == 0.0
    assert score.num_examples == 2


def test_sums_survive_a_module_in_low_precision() -> None:
    module = torch.nn.ModuleDict({"score": BenchmarkScore()}).to(torch.bfloat16)
    score = module["score"]
    for _ in range(300):
        score.update([True])
    assert score.num_examples == 300


def test_no_verdict_has_no_interval() -> None:
    with pytest.raises(ValueError, match="got 0 of 0"):
        BenchmarkScore().interval()
