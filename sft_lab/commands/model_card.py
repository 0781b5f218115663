"""The card of an exported model: what it was trained on, what it can do, and how to make it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sft_lab.analysis.abilities import abilities_in
from sft_lab.errors import RequestError
from sft_lab.launch.run_config import RunConfig
from sft_lab.paths import is_hub_name, resolve, unpinned
from sft_lab.runs.results import RunResult, read_result
from sft_lab.runs.store import RunStore

_LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}


def recorded_result(store: RunStore, run_id: str) -> RunResult | None:
    """Return the results of a run; None if the store does not hold it."""
    try:
        return read_result(store, store.find(run_id))
    except RequestError:
        return None


def step_after(result: RunResult, stage: str) -> int:
    """Return the optimizer steps at the end of a stage; 0 for the base."""
    step = 0
    for name, steps in result.stages.items():
        step += steps
        if name == stage:
            return step
    return 0


def model_card(config: RunConfig, what: str, result: RunResult | None, step: int | None) -> str:
    """Return a card with the fields that the hub reads.

    Args:
        config: The config of the run.
        what: What is exported.
        result: What the run measured; None if it is not known here.
        step: Optimizer steps that the model has been trained for; None if they are not known.
    """
    base, revision = unpinned(config.model_settings.base)
    fields: dict[str, Any] = {"library_name": _LIBRARY[what], "tags": ["sft", "sft_lab"]}
    if is_hub_name(resolve(base)):
        fields["base_model"] = base
    sources = config.plain["corpus"]["sources"]
    named = [source["path"] for source in sources.values() if is_hub_name(resolve(source["path"]))]
    if named:
        fields["datasets"] = list(dict.fromkeys(named))
    fields |= {"license": "other", "license_name": "of-base-and-data"}
    trained = list(config.plain["data"]["stages"])
    if result is not None and step is not None:
        trained = [name for name in result.stages if step_after(result, name) <= step]
    at = f" at revision {revision}" if revision else ""
    parts = [
        f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n",
        f"# {result.name if result else config.strategy}\n",
        f"`{base}`{at}, fine-tuned in the stages {', '.join(trained) or 'none'} by sft_lab; seed "
        f"{config.seed}, {config.model_settings.quantization}.\n",
    ]
    if result is not None:
        parts += ["## Abilities\n", _abilities(result, trained)]
    parts += ["## Data\n", _data(sources, result)]
    parts += [
        "## Licence\n",
        "The licences of the base and of every source apply. Set `license` above accordingly.\n",
        "## Made by\n",
        "```bash\npython -m sft_lab fit --config run.yaml\n```\n",
        "`run.yaml` is the run's resolved config, next to this card.",
    ]
    if result is not None:
        parts.append(f"The run is {result.run_id}.")
    return "\n".join(parts) + "\n"


def _abilities(result: RunResult, trained: Sequence[str]) -> str:
    """Return the scores before training and after each stage that the model has been through."""
    points = [p for p in result.boundaries if p.after is None or p.after in trained]
    header = ["score", *("before" if p.after is None else f"after {p.after}" for p in points)]
    rows = []
    for ability in abilities_in(result):
        cells = []
        for point in points:
            score = point.scores.get(ability.key)
            text = ability.text
            cells.append(
                "-"
                if score is None
                else f"{text(score.value)} [{text(score.low)}, {text(score.high)}]"
            )
        rows.append([f"{ability.key}, {ability.unit}", *cells])
    return _table(header, rows) + "\nIn brackets: 95 % intervals.\n"


def _data(sources: Mapping[str, Mapping[str, Any]], result: RunResult | None) -> str:
    if result is None:
        return _table(["source", "path"], [[name, s["path"]] for name, s in sources.items()])
    commits = result.record.commits
    rows = [
        [name, s.path, commits.get(f"corpus.sources.{name}", "-"), f"{s.rows:,}", s.digest]
        for name, s in result.record.sources.items()
    ]
    return _table(["source", "path", "commit", "rows", "sha256 of its samples"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"
