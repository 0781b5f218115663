"""Hidden states of a run's sources, before and after training: computed and written."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_lab.analysis.representation import (
    Representation,
    check_sizes,
    choose_queries,
    default_layer,
    hidden_states,
    principal_components,
    separability,
    tsne,
)
from sft_lab.errors import RequestError
from sft_lab.launch.build import build_data
from sft_lab.launch.parser import parse_recorded
from sft_lab.model.qlora import compute_dtype, load_base
from sft_lab.paths import pinned
from sft_lab.runs.store import RunStore
from sft_lab.terminal import visible
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.stage import trains


def represent(
    store: RunStore,
    name: str,
    *,
    stage: str | None = None,
    layer: int | None = None,
    num_queries: int = 100,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Representation:
    """Compute how a run's sources lie inside its base and inside the trained model.

    Source: Dong et al. 2023, "How Abilities in Large Language Models are Affected by Supervised
    Fine-tuning Data Composition", the section on t-SNE: 100 queries of each source, layer 15.

    Args:
        store: The store of the run.
        name: Its id, the beginning of one, or its name.
        stage: The stage after which the model is taken; the last by default.
        layer: The layer, from 1; the paper's or the middle one by default.
        num_queries: Queries of each source that the run trains on.
        perplexity: That of t-SNE.
        seed: Seed of the queries, of the folds and of t-SNE.

    Raises:
        RequestError: If there is no such run, stage or layer, or there are too few queries.
    """
    run = store.find(name)
    run_id: str = run.info.run_id
    config = store.config(run_id)
    stages = list(config["data"]["stages"])
    if run.data.tags.get("command") != "fit":
        raise RequestError(
            f"RUN {run_id[:8]} is one of `{run.data.tags.get('command')}`, which trains no stage; "
            "name a run of `fit`."
        )
    stage = stages[-1] if stage is None else stage
    if stage not in stages:
        raise RequestError(f"--stage: there is no {stage!r}; the run has {', '.join(stages)}.")
    data = build_data(parse_recorded(config))
    data.setup("validate")
    queries = choose_queries(_trained_sources(data), num_queries, seed)
    sources = [query.source for query in queries]
    check_sizes(sources, perplexity)
    prompts = [query.input_ids for query in queries]
    with tempfile.TemporaryDirectory() as folder:
        trained = store.artifact_folder(run_id, f"stages/{stage}", Path(folder))
        settings = config["model"]
        dtype = compute_dtype(str(config["trainer"]["precision"]))
        base = pinned(settings["base"], settings["revision"])
        model = load_base(base, settings["quantization"], dtype)
        num_layers = int(model.config.get_text_config().num_hidden_layers)
        layer = default_layer(num_layers) if layer is None else layer
        before = hidden_states(model, prompts, layer)
        model = _trained_model(model, trained, settings, dtype)
        after = hidden_states(model, prompts, layer)
    (old, old_share), (new, new_share) = map(principal_components, (before, after))
    return Representation(
        run_id=run_id,
        run_name=run.info.run_name,
        stage=stage,
        layer=layer,
        num_layers=num_layers,
        perplexity=perplexity,
        seed=seed,
        queries=tuple(queries),
        components=(old, new),
        explained=(old_share, new_share),
        neighbours=(tsne(before, perplexity, seed), tsne(after, perplexity, seed)),
        separability=separability(before, after, sources, seed),
    )


def _trained_sources(data: StagedDataModule) -> dict[str, Any]:
    return {
        name: loaded
        for name, loaded in data.corpus.loaded.items()
        if any(trains(stage, name) for stage in data.stages.values())
    }


def _trained_model(base: Any, folder: Path, settings: Mapping[str, Any], dtype: Any) -> Any:
    """Return the model of a stage's end: the base with its adapters, or one trained in full."""
    if settings["lora"] is None:
        return load_base(str(folder), settings["quantization"], dtype)
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder))


def write(found: Representation, out: Path) -> None:
    """Write ``representation.svg``, ``.csv`` and ``.json`` into a folder."""
    from sft_lab.report.drawing import stand_alone
    from sft_lab.report.representation_figure import caption, figure

    document = {**found.to_json(), "caption": caption(found)}
    contents = {
        "svg": stand_alone(figure(found)),
        "csv": found.to_csv(),
        "json": json.dumps(document, indent=2) + "\n",
    }
    for ending, content in contents.items():
        (out / f"representation.{ending}").write_text(visible(content), encoding="utf-8")
