from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lab.data.corpus import Corpus
from sft_lab.data.sources import Source
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmarks.world import WorldMath
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.training.data_modules import StagedDataModule, micro_batches_per_step
from sft_lab.training.stage import Stage


@pytest.fixture
def staged(tiny_world: Path) -> Callable[..., StagedDataModule]:
    """Makes a run of math alone, then general with 1/4 of math; 24 rows of each, 4 held out."""

    def make(**settings: Any) -> StagedDataModule:
        data = tiny_world / "data"
        sources = {name: Source(str(data / f"{name}.jsonl")) for name in ("math", "general")}
        corpus = Corpus(
            sources,
            str(tiny_world / "base"),
            max_length=settings.pop("max_length", 2048),
            val_rows=settings.pop("val_rows", 4),
        )
        suite = EvaluationSuite({"world_math": WorldMath(str(data / "world_math.jsonl"), 4)})
        stages = {
            "first": Stage({"math": 1}, lr=1e-3, epochs=2),
            "second": Stage({"general": 1, "math": "1/4"}, lr=1e-3, max_steps=2),
        }
        arguments = {"stages": stages, "batch_size": 8, "micro_batch_size": 4, **settings}
        return StagedDataModule(corpus, suite, **arguments)

    return make


def sources_of(loader: Any) -> Counter[int]:
    """Rows by source: a row begins where position ids do."""
    return Counter(
        int(source)
        for batch in loader
        for source in batch["source_ids"][batch["position_ids"] == 0]
    )


def num_tokens(batch: Any) -> int:
    """Tokens of a batch of the tiny world, whose padding is no token of a row."""
    return int((batch["input_ids"] != 0).sum())


def test_each_stage_gives_its_own_batches(staged: Callable[..., StagedDataModule]) -> None:
    data = staged()
    data.setup("fit")
    schedule = data.schedule
    # 20 rows are 8 + 8 + 4, twice; then 16 rows of the 20 + 5.
    assert [stage.steps_per_pass for stage in schedule.stages] == [(3, 3), (2,)]
    assert schedule.seen(8).samples == 20 + 20 + 16
    assert sources_of(data.train_dataloader()) == {0: 20}
    data.activate(1, 0)
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 4, 4]
    # Of 5 replayed rows spread over 25, 16 hold three or four.
    assert sources_of(batches)[0] in (3, 4)


def test_tokens_seen_are_those_of_the_batches(staged: Callable[..., StagedDataModule]) -> None:
    for packing in (False, True):
        data = staged(packing=packing)
        data.setup("fit")
        schedule = data.schedule
        tokens = sum(num_tokens(batch) for batch in data.train_dataloader())
        assert schedule.seen(schedule.stages[0].steps_per_pass[0]).tokens == tokens


def test_packed_steps_hold_sequences_of_whole_rows(
    staged: Callable[..., StagedDataModule],
) -> None:
    # Rows of math have 33 to 36 tokens, of general up to 39: four of math fit.
    data = staged(packing=True, max_length=150, batch_size=2, micro_batch_size=1)
    data.setup("fit")
    schedule = data.schedule
    # 20 rows are 5 sequences: steps of 2, 2 and 1, twice; then 2 of the steps of 25 rows.
    assert [stage.steps_per_pass for stage in schedule.stages] == [(3, 3), (2,)]
    assert [schedule.seen(step).samples for step in range(4)] == [0, 8, 16, 20]
    batches = list(data.train_dataloader())
    assert len(batches) == 5
    assert all(batch["input_ids"].shape[1] <= 150 for batch in batches)
    assert sources_of(batches) == {0: 20}
    targets = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    windows = [int(batch["window_target_tokens"]) for batch in batches]
    assert windows == [sum(targets[:2])] * 2 + [sum(targets[2:4])] * 2 + targets[4:]
    data.activate(1, 0)
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    assert schedule.seen(8).samples - schedule.seen(6).samples == sources_of(batches).total()
    assert set(sources_of(batches)) == {0, 1}


def test_lightning_moves_the_whole_batch(staged: Callable[..., StagedDataModule]) -> None:
    data = staged()
    data.setup("fit")
    batch = data.transfer_batch_to_device(next(iter(data.train_dataloader())), "meta", 0)
    assert all(value.device == torch.device("meta") for value in batch.values())


def test_passes_differ_in_their_order(staged: Callable[..., StagedDataModule]) -> None:
    data = staged()
    data.setup("fit")
    orders = []
    for pass_index in (0, 1):
        data.activate(0, pass_index)
        rows = [row.tolist() for batch in data.train_dataloader() for row in batch["input_ids"]]
        orders.append(rows)
    assert orders[0] != orders[1]


def test_two_runs_of_a_seed_are_the_same(staged: Callable[..., StagedDataModule]) -> None:
    def passes(seed: int) -> Any:
        data = staged(seed=seed)
        data.setup("fit")
        return [module.plan.passes for module in data.stage_modules]

    assert passes(0) == passes(0)
    assert passes(0) != passes(1)


def test_held_out_rows_are_read_for_evaluations(
    staged: Callable[..., StagedDataModule],
) -> None:
    data = staged()
    data.setup("validate")
    assert [sources_of(list(batches)) for batches in data.held_out] == [{0: 4}, {1: 4}]
    bare = staged(val_rows=0)
    bare.setup("validate")
    assert bare.held_out == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": True, "padding_free": True}, r"data\.padding_free leaves nothing to save"),
        ({"batch_size": 6}, r"data\.batch_size must be a multiple .* got 6 and 4"),
        ({"micro_batch_size": 0}, r"data\.micro_batch_size, got 8 and 0"),
        ({"stages": {}}, r"data\.stages is empty"),
        (
            {"stages": {"s": Stage({"genral": 1}, lr=1.0, epochs=1)}},
            r"'genral' \(did you mean 'general'\?\)",
        ),
    ],
)
def test_a_wrong_run_is_refused_before_anything_is_read(
    staged: Callable[..., StagedDataModule], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        staged(**settings)


def test_micro_batches_per_step_divide() -> None:
    assert micro_batches_per_step(8, 2) == 4
    assert micro_batches_per_step(8, 8) == 1
