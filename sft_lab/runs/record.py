"""What a run's record holds: tags, plan, samples and answers."""

import hashlib
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_lab.config.identity import digest
from sft_lab.evaluation.evaluator import Answer
from sft_lab.evaluation.prompts import Prompts
from sft_lab.runs.store import DIGEST_TAG
from sft_lab.training.data_modules import StagedDataModule


def run_tags(config: Mapping[str, Any], strategy: str, command: str) -> dict[str, str]:
    """Return what a run is, the digest by which it is found again, and the code's state."""
    return {
        "strategy": strategy,
        "command": command,
        "base": str(config["model"]["base"]),
        "stages": ", ".join(config["data"]["stages"]),
        DIGEST_TAG: digest(config),
        **_git_tags(),
    }


def _git_tags() -> dict[str, str]:
    """Return commit and state of the checkout the code runs from; nothing where there is none."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout

    try:
        commit, changes = git("rev-parse", "HEAD").strip(), git("status", "--porcelain").strip()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {}
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config by dotted keys, as MLflow shows parameters.

    >>> flatten({"data": {"k": "1/16"}})
    {'data.k': '1/16'}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def answers_table(answers: list[Answer]) -> dict[str, list[Any]]:
    """Return an evaluation's items in the form MLflow shows as a table."""
    marks = list(dict.fromkeys(name for a in answers for name in a.verdict.marks or ()))
    rows = [
        [
            a.item.id,
            *((a.verdict.marks or {}).get(name) for name in marks),
            a.verdict.reason,
            a.completion,
            a.item.messages[-1]["content"] if a.item.messages else a.item.text,
        ]
        for a in answers
    ]
    return {"columns": ["id", *marks, "reason", "completion", "prompt"], "data": rows}


def stage_plan(data: StagedDataModule, weights: str) -> dict[str, Any]:
    """Return what every stage trains on, by source, with the digests of sources and benchmarks.

    Args:
        data: The stages and benchmarks.
        weights: What answers the benchmarks.
    """
    num_tokens = {source: loaded.num_tokens for source, loaded in data.corpus.loaded.items()}
    num_target_tokens = {
        source: loaded.num_target_tokens for source, loaded in data.corpus.loaded.items()
    }
    prompts = {found.name: found for found in data.eval_sets if isinstance(found, Prompts)}
    return {
        "sources": {
            source: {
                "path": data.corpus.sources[source].path,
                "digest": loaded.digest,
                "rows": len(loaded.rows),
                "held_out": loaded.val_rows,
                "report": loaded.report.to_json(),
            }
            for source, loaded in data.corpus.loaded.items()
        },
        "stages": {
            name: {
                "steps": module.plan.num_steps,
                "passes": len(module.plan.passes),
                "asked": dict(settings.mixture),
                "trained": module.plan.count(num_tokens, num_target_tokens),
                "manifest_digest": hashlib.sha256(manifest(data, name).encode()).hexdigest(),
            }
            for (name, settings), module in zip(
                data.stages.items(), data.stage_modules, strict=True
            )
        },
        "benchmarks": {
            name: {
                "digest": benchmark.digest(),
                "protocol": benchmark.protocol(),
                "decoding": asdict(data.evaluation.decoding(name)),
                "weights": weights,
                "prompts": prompts[name].digest,
                "items": len(benchmark.items()),
                "turns": benchmark.turns,
                "scale": list(benchmark.scale),
                **benchmark.conditions(),
            }
            for name, benchmark in data.evaluation.benchmarks.items()
        },
    }


def window_table(data: StagedDataModule, stage_name: str) -> str:
    """Return what each optimizer step of a stage trains on, a line for every source in it."""
    plan = next(module.plan for module in data.stage_modules if module.plan.name == stage_name)
    loaded = data.corpus.loaded
    windows = plan.count_windows(
        {name: source.num_tokens for name, source in loaded.items()},
        {name: source.num_target_tokens for name, source in loaded.items()},
    )
    lines = (
        f"{step}\t{source}\t{count['samples']}\t{count['tokens']}\t{count['target_tokens']}"
        for step, counts in enumerate(windows, start=1)
        for source, count in sorted(counts.items())
    )
    return "step\tsource\tsamples\ttokens\ttarget_tokens\n" + "\n".join(lines) + "\n"


def manifest(data: StagedDataModule, stage_name: str) -> str:
    """Return the samples of a stage, a line each: source, sample id, how often it is trained."""
    plan = next(module.plan for module in data.stage_modules if module.plan.name == stage_name)
    times = Counter(plan.rows())
    lines = (
        f"{ref.source}\t{data.corpus.loaded[ref.source].sample_ids[ref.index]}\t{count}"
        for ref, count in sorted(times.items())
    )
    return "source\tsample_id\ttimes\n" + "\n".join(lines) + "\n"
