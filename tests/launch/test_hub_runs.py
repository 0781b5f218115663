"""Runs whose base, data and benchmarks are hub names, in a cache of the hub, without a network."""

from pathlib import Path

import pytest
from benchmark_files import add_benchmarks
from conftest import chat
from hub_cache import HubCache
from tiny_lab import Lab

from sft_lab.hub import commit_of
from sft_lab.runs.logger import CHANGES_TAG

ROWS = [chat(f"math: what is {n} plus 1?", f"#### {n + 1}") for n in range(24)]
GENERAL = [chat(f"Say {n}.", str(n)) for n in range(24)]
HUB = """
model: {base: some/base}
corpus:
  sources: {math: {path: some/math}, general: {path: some/general, revision: v1}}
evaluation:
  every_n_steps: null
  benchmarks:
    gsm8k:
      class_path: sft_lab.evaluation.benchmarks.gsm8k.GSM8K
      init_args: {path: openai/gsm8k, source: math, max_new_tokens: 2}
"""


@pytest.fixture
def hub_lab(stopped_lab: Lab, hub_cache: HubCache, tiny_base: Path) -> Lab:
    """A lab whose ``hub.yaml`` has hub names only."""
    add_benchmarks(hub_cache)
    hub_cache.add_model("some/base", tiny_base)
    hub_cache.add_rows("some/math", ROWS)
    hub_cache.add_rows("some/general", GENERAL, branch="v1")
    stopped_lab.write("hub.yaml", HUB)
    return stopped_lab


def test_a_run_by_hub_names_records_its_commits_and_says_that_a_branch_has_moved(
    hub_lab: Lab, hub_cache: HubCache
) -> None:
    stop = ("--trainer.callbacks+=stopper.Stop", "--trainer.callbacks.step=3")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        hub_lab.fit("--config=hub.yaml", *stop)
    assert hub_lab.json("record.json")["commits"] == {
        "model.base": hub_cache.commit("model", "some/base"),
        "corpus.tokenizer": hub_cache.commit("model", "some/base"),
        "corpus.sources.math": hub_cache.commit("dataset", "some/math"),
        "corpus.sources.general": hub_cache.commit("dataset", "some/general", "v1"),
        "evaluation.benchmarks.gsm8k": hub_cache.commit("dataset", "openai/gsm8k"),
    }
    # The same rows, in another commit of the branch.
    hub_cache.add_rows("some/math", ROWS, splits={"train": slice(None), "test": slice(0, 1)})
    commit_of.cache_clear()
    resumed = hub_lab.fit("--config=hub.yaml", "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    assert "commit of corpus.sources.math: " in hub_lab.run.data.tags[CHANGES_TAG]
    # Other rows.
    hub_cache.add_rows("some/math", ROWS[1:])
    commit_of.cache_clear()
    again = hub_lab.fit("--config=hub.yaml", f"--ckpt_path={hub_lab.checkpoint}")
    assert "corpus.sources.math has changed since the checkpoint was written" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.revision=v9"], "model.base: some/base is not a local file, and the hub does"),
        (["--model.base=no/base"], "model.base: no/base is not a local file, and the hub does"),
        (
            ["--corpus.tokenizer=no/t"],
            "corpus.tokenizer (without it, model.base): no/t is",
        ),
        (["--corpus.sources.math.revision=v9"], "its cache does not hold it at revision v9. Name"),
    ],
)
def test_a_hub_name_or_revision_that_is_missing_names_its_key(
    hub_lab: Lab, arguments: list[str], message: str
) -> None:
    refused = hub_lab.fit("--config=hub.yaml", *arguments)
    assert refused.code == 2
    assert message in refused.err.splitlines()[-1]
    assert not (hub_lab.folder / "mlruns").exists()
