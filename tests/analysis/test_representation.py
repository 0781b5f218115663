"""Hidden states of queries, separability of sources, and the command that draws them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_lab import FinishedRun

from sft_lab.analysis.representation import (
    choose_queries,
    hidden_states,
    principal_components,
    separability,
    tsne,
)
from sft_lab.data.tokenized_row import TokenizedRow
from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.qlora import load_base

QUERIES = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17]]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return load_base(str(tiny_base), "fp32", torch.float32)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_querys_state_does_not_depend_on_its_batch(model: Any, layer: int) -> None:
    together = hidden_states(model, QUERIES, layer, batch_size=4)
    alone = np.concatenate([hidden_states(model, [query], layer) for query in QUERIES])
    assert together.shape == (4, 32)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_state_is_that_of_the_last_token(model: Any) -> None:
    query = torch.tensor([QUERIES[0]])
    with torch.no_grad():
        states = model.eval()(input_ids=query, output_hidden_states=True).hidden_states[1]
    np.testing.assert_allclose(hidden_states(model, QUERIES, 1)[0], states[0, -1], atol=1e-6)


def test_adapters_that_have_learnt_nothing_change_nothing_and_training_goes_on(
    tiny_base: Path,
) -> None:
    base = load_base(str(tiny_base), "fp32", torch.float32)
    before = hidden_states(base, QUERIES, 2)
    adapted = add_adapters(base, Lora(r=4, lora_dropout=0.5), seed=0)
    np.testing.assert_allclose(hidden_states(adapted, QUERIES, 2), before, atol=1e-6)
    assert adapted.training
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    assert np.abs(hidden_states(adapted, QUERIES, 2) - before).max() > 1e-3


@pytest.mark.parametrize("layer", [-1, 0, 3])
def test_a_layer_that_is_not_there_is_refused(model: Any, layer: int) -> None:
    with pytest.raises(RequestError, match=f"--layer must be 1 to 2, got {layer}"):
        hidden_states(model, QUERIES, layer)


def source(*prompts: int) -> Any:
    """A source with a row for each prompt, of that one token and an answer."""
    rows = [TokenizedRow([prompt, 1, 2], ((1, 3),)) for prompt in prompts]
    return SimpleNamespace(rows=rows, sample_ids=[f"{n}" for n in range(len(rows))])


def test_queries_come_once_and_more_hold_fewer() -> None:
    loaded = {"math": source(5, 5, 6, 7, 7, 8), "code": source(*range(20, 30))}
    few, many = choose_queries(loaded, 3, seed=0), choose_queries(loaded, 4, seed=0)
    by_source = [query.source for query in many]
    assert by_source == ["math"] * 4 + ["code"] * 4
    assert {query.input_ids for query in many[:4]} == {(5,), (6,), (7,), (8,)}
    assert few == [*many[:3], *many[4:7]]
    assert choose_queries(loaded, 4, seed=1) != many
    with pytest.raises(RequestError, match="math has 4 different queries, got 5"):
        choose_queries(loaded, 5, seed=0)


def test_separability_before_and_after() -> None:
    # Before, both sources lie on 0 and 1 alike; after, one on 0 and the other on 1.
    sources = ["a"] * 6 + ["b"] * 6
    before = np.array([[n % 2] for n in range(12)], np.float32)
    after = np.array([[0]] * 6 + [[1]] * 6, np.float32)
    found = separability(before, after, sources, seed=0)
    # Of five others of its source three lie apart, of six of the other three: (1/2 - 3/5) / (3/5).
    old, new = found.silhouettes["all"]
    assert old.value == pytest.approx(-1 / 6)
    assert new.value == pytest.approx(1)
    assert found.silhouette_change["a"].value == pytest.approx(7 / 6)
    assert list(found.silhouettes) == ["a", "b", "all"]
    assert found.probe[1].value == 1
    assert found.probe[0].value <= 0.5
    assert found.probe_change.value == pytest.approx(1 - found.probe[0].value)
    assert found.probe_change.n == 12


def test_projections_are_the_same_whenever_they_are_made() -> None:
    states = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    assert tsne(states, perplexity=5, seed=0).shape == (20, 2)
    np.testing.assert_array_equal(tsne(states, 5, seed=0), tsne(states, 5, seed=0))
    line = np.outer(np.arange(5), [3, 4]).astype(np.float32)  # 5 apart, in one direction
    places, explained = principal_components(line)
    np.testing.assert_allclose(np.sort(np.abs(places[:, 0])), [0, 5, 5, 10, 10], atol=1e-4)
    assert explained == pytest.approx(1)


def test_a_run_is_drawn(finished: FinishedRun, tmp_path: Path) -> None:
    command = ["represent", finished.lab.run.info.run_id[:8], "--num_queries=8", "--perplexity=4"]
    outcome = finished.lab(*command, f"--out={tmp_path / 'drawn'}")
    assert outcome.code == 0, outcome.err
    written = json.loads((tmp_path / "drawn/representation.json").read_text())
    # The tiny run trains on math, then on general; code lies in no stage.
    assert written["queries"] == {"math": 8, "general": 8}
    assert (written["stage"], written["layer"], written["num_layers"]) == ("second", 1, 2)
    assert written["caption"] == outcome.out.strip()
    assert written["probe"][0]["n"] == 16
    lines = (tmp_path / "drawn/representation.csv").read_text().splitlines()
    assert lines[0] == "source,sample_id,moment,pca_x,pca_y,tsne_x,tsne_y"
    assert len(lines) == 1 + 2 * 16
    assert lines[1].split(",")[:3:2] == ["math", "before"]
    svg = (tmp_path / "drawn/representation.svg").read_text()
    for text in ("math", "general", "t-SNE, after 'second'", "Principal components, before"):
        assert f">{text}</text>" in svg.replace("&#39;", "'").replace("&apos;", "'")
    again = finished.lab(*command, f"--out={tmp_path / 'again'}")
    assert again.out == outcome.out
    assert (tmp_path / "again/representation.svg").read_text() == svg
    first = finished.lab(*command, "--stage=first", f"--out={tmp_path / 'first'}")
    assert "after stage 'first'" in first.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage=third"], "--stage: there is no 'third'; the run has first, second."),
        (["--num_queries=25"], "--num_queries: math has 24 different queries, got 25."),
        (["--num_queries=4"], "--num_queries: must be 5 or more, got 4"),
        (["--num_queries=8"], "below a third of the 16 queries, got 30."),
        (["--num_queries=8", "--perplexity=4", "--layer=3"], "--layer must be 1 to 2, got 3."),
    ],
)
def test_a_wrong_request_is_refused(
    finished: FinishedRun, tmp_path: Path, arguments: list[str], message: str
) -> None:
    run_id = finished.lab.run.info.run_id
    outcome = finished.lab("represent", run_id, f"--out={tmp_path}", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert not list(tmp_path.iterdir())
