"""The contents of a run's files: its record, the samples of its stages, answers item by item."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sft_lab.evaluation.item import Answer, Item
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.runs.inputs import hub_commits
from sft_lab.runs.record import BenchmarkRecord, RunRecord, SourceRecord, StageRecord
from sft_lab.training.data_modules import StagedDataModule


def run_record(data: StagedDataModule, weights: str, base: str) -> RunRecord:
    """Return the record of a run.

    Args:
        data: The stages and benchmarks.
        weights: What answers the benchmarks.
        base: The base model.
    """
    num_tokens = {source: loaded.num_tokens for source, loaded in data.corpus.loaded.items()}
    num_target_tokens = {
        source: loaded.num_target_tokens for source, loaded in data.corpus.loaded.items()
    }
    prompts = data.evaluation.prompts(data.corpus.renderer)
    references = data.evaluation.references(data.corpus.renderer)
    cuts_reasoning = data.evaluation.cuts_reasoning(data.corpus.renderer)
    reasoning = {"cut_reasoning": True} if cuts_reasoning else {}
    return RunRecord(
        sources={
            source: SourceRecord(
                path=data.corpus.sources[source].path,
                digest=loaded.digest,
                rows=len(loaded.rows),
                held_out=loaded.val_rows,
                report=loaded.report.to_json(),
            )
            for source, loaded in data.corpus.loaded.items()
        },
        stages={
            name: StageRecord(
                steps=module.plan.num_steps,
                passes=len(module.plan.passes),
                asked={source: share.written for source, share in settings.mixture.items()},
                trained=module.plan.count(num_tokens, num_target_tokens),
                manifest_digest=hashlib.sha256(manifest(data, name).encode()).hexdigest(),
            )
            for (name, settings), module in zip(
                data.stages.items(), data.stage_modules, strict=True
            )
        },
        benchmarks={
            name: BenchmarkRecord(
                digest=benchmark.digest(),
                protocol=benchmark.protocol(),
                decoding=_decoding(data.evaluation, name) | reasoning,
                weights=weights,
                prompts=prompts[name].digest,
                items=len(benchmark.items()),
                turns=benchmark.turns,
                scale=benchmark.scale,
                chance=benchmark.chance,
                marks={score: benchmark.mark_of(score) for score in benchmark.score_names},
                source=benchmark.source,
                conditions=benchmark.conditions(),
                agrees_with=benchmark.agrees_with(),
                strict_score=benchmark.strict_score,
                form_mark=benchmark.form_mark,
                split=data.evaluation.split_of(name).record(),
                references=sum(pair is not None for pair in references.get(name, [])),
            )
            for name, benchmark in data.evaluation.benchmarks.items()
        },
        abilities=dict(data.evaluation.primary),
        commits=hub_commits(data, base),
    )


def _decoding(suite: EvaluationSuite, name: str) -> dict[str, Any]:
    temperatures = suite.benchmarks[name].temperatures()
    by_kind = {"temperature": dict(temperatures)} if temperatures else {}
    return asdict(suite.decoding(name)) | by_kind


def answers_table(
    answers: Sequence[Answer], expected: Callable[[Item], str | None]
) -> dict[str, list[Any]]:
    """Return an evaluation's items in the form MLflow shows as a table.

    Args:
        answers: Answers to one benchmark.
        expected: Returns an item's reference answer, or None.
    """
    marks = list(dict.fromkeys(name for a in answers for name in a.verdict.marks or ()))
    texts = ["reason", "completion", "expected", "prompt"]
    if any(a.reasoning for a in answers):
        texts.insert(3, "reasoning")
    is_clustered = any(a.item.cluster_id != a.item.group_id for a in answers)
    rows = []
    for a in answers:
        prompt = a.item.messages[-1]["content"] if a.item.messages else a.item.text
        text = {
            "reason": a.verdict.reason,
            "completion": a.completion,
            "expected": expected(a.item),
            "reasoning": a.reasoning,
            "prompt": prompt,
        }
        graded = [(a.verdict.marks or {}).get(name) for name in marks]
        cluster = [a.item.cluster_id] if is_clustered else []
        ids = [a.item.id, a.item.group_id, *cluster, a.part]
        rows.append([*ids, *graded, *(text[name] for name in texts)])
    ids = ["id", "item", *(["cluster"] if is_clustered else []), "split"]
    return {"columns": [*ids, *marks, *texts], "data": rows}


def window_table(data: StagedDataModule, stage_name: str) -> str:
    """Return the samples and tokens of each optimizer step of a stage, one line per source."""
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
