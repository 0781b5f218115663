"""Plan the runs of a study: one run for all equal cells, a digest for each, and its fork."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from sft_lab.config.compose import compose_files
from sft_lab.config.identity import identity
from sft_lab.cost.run_cost import RunCost
from sft_lab.errors import RequestError
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.launch.build import plan_data
from sft_lab.launch.parser import parse_written
from sft_lab.launch.run_config import RunConfig
from sft_lab.paths import pinned
from sft_lab.study.design import CellSpec
from sft_lab.study.digests import base_files_digest, class_digests, code_digest, json_digest
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.shares import Share
from sft_lab.training.stage import choose_rows

CostOf = Callable[[StagedDataModule, RunConfig], RunCost]


@dataclass(frozen=True)
class SharedStages:
    """A run and one of its stages, from whose end another run can start."""

    run: str  # digest
    stage: str


@dataclass(frozen=True)
class StudyRun:
    """One run, which fills one cell or several equal ones.

    Attributes:
        digest: Digest of config, data, base and code; equal cells have the same.
        cells: The cells that it fills; the first one gives its name.
        steps: Optimizer steps of each stage, by name.
        samples: Samples trained on.
        tokens: Tokens trained on, prompts included.
        stages: Each stage in canonical form, for comparison, by name.
        base: Digest of everything but the stages that decides its numbers.
        config: Its config; machine-dependent values are resolved once, when the study is planned.
        abilities: Metric key of each benchmark's first score, by the source that teaches it; a
            source's further benchmarks, and those without a source, go by the benchmark's name.
        sources: The source that teaches each ability, by the ability's name, where there is one.
        scores: Metric keys of all scores where higher is better.
        rows: Rows of each stage's mixture, by stage and source.
        available: Rows of each source that can be trained.
        cost: Its cost without a fork, if requested.
        fork: The run and stage it can start from.
    """

    digest: str
    cells: tuple[CellSpec, ...]
    steps: Mapping[str, int]
    samples: int
    tokens: int
    stages: Mapping[str, str]
    base: str
    config: RunConfig
    abilities: Mapping[str, str]
    sources: Mapping[str, str] = field(default_factory=dict)
    scores: tuple[str, ...] = ()
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    available: Mapping[str, int] = field(default_factory=dict)
    cost: RunCost | None = None
    fork: SharedStages | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.cells[0].name

    @property
    def steps_to_train(self) -> int:
        """Optimizer steps to train after the fork."""
        shared = list(self.stages).index(self.fork.stage) + 1 if self.fork else 0
        return sum(list(self.steps.values())[shared:])


def plan_runs(
    cells: Sequence[CellSpec],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cost: CostOf | None = None,
) -> list[StudyRun]:
    """Return the runs that fill all cells, every config checked and planned as by ``fit``.

    Args:
        cells: The cells.
        on_progress: Called with the number of cells planned so far, and the total.
        cost: Returns what a run will cost, given its data and config.

    Raises:
        RequestError: If the config of a cell is wrong, naming the cell.
    """
    found: dict[str, StudyRun] = {}
    for index, cell in enumerate(cells):
        on_progress(index, len(cells))
        run = plan_run(cell, cost)
        if run.digest in found:
            known = found[run.digest]
            run = replace(known, cells=(*known.cells, cell))
        found[run.digest] = run
    on_progress(len(cells), len(cells))
    return with_forks(list(found.values()))


def plan_run(cell: CellSpec, cost: CostOf | None = None) -> StudyRun:
    """Return the run of one cell, as ``plan_runs`` does.

    Raises:
        RequestError: If its config is wrong, naming the cell.
    """
    try:
        config = cell_config(cell)
        data = plan_data(config)
        run = _study_run(cell, config, data)
        return replace(run, cost=cost(data, config)) if cost is not None else run
    except RequestError as fault:
        raise RequestError(f"cell '{cell.name}': {fault}") from fault


def cell_config(cell: CellSpec) -> RunConfig:
    """Parse the config of a cell.

    Raises:
        RequestError: If ``fit`` would refuse it.
    """
    written = compose_files(cell.files, cell.overrides)
    if cell.stage_order:
        stages = written.config.data.stages
        written.config.data.stages = {name: stages[name] for name in cell.stage_order}
    return parse_written(written, "fit", [], Path(cell.files[0]).stem)


def _study_run(cell: CellSpec, config: RunConfig, data: StagedDataModule) -> StudyRun:
    plain = config.plain
    comparable = identity(plain)
    stages = comparable["data"].pop("stages")
    comparable["data"].pop("k", None)  # has an effect only through the shares of stages
    parsed = config.values.data.stages
    compared = {name: _canonical(stage, parsed[name].mixture) for name, stage in stages.items()}
    digests = {
        "sources": {name: loaded.digest for name, loaded in data.corpus.loaded.items()},
        "benchmarks": {n: b.digest() for n, b in data.evaluation.benchmarks.items()},
        "code": planned_code(),
        "base": base_files_digest(pinned(str(plain["model"]["base"]), plain["model"]["revision"])),
        "renderer": data.corpus.renderer.fingerprint,
        "classes": class_digests(plain),
        # A user's hooks may change the numbers; `identity` leaves them out.
        "hooks": [plain["trainer"][key] for key in ("callbacks", "plugins")],
    }
    base = json_digest([comparable, digests])
    schedule = data.schedule
    seen = schedule.seen(schedule.num_steps)
    return StudyRun(
        digest=json_digest([base, list(compared.items())]),
        cells=(cell,),
        steps={stage.name: stage.num_steps for stage in schedule.stages},
        samples=seen.samples,
        tokens=seen.tokens,
        stages=compared,
        base=base,
        config=config,
        abilities=_abilities(data.evaluation),
        sources=_sources(data.evaluation),
        scores=tuple(
            f"{name}/{score}"
            for name, benchmark in data.evaluation.benchmarks.items()
            for score in benchmark.score_names
            if benchmark.is_ability(score)
        ),
        rows={
            name: {s: len(rows) for s, rows in choose_rows(name, stage, data.corpus).items()}
            for name, stage in parsed.items()
        },
        available={name: len(s.trainable) for name, s in data.corpus.loaded.items()},
    )


def _abilities(suite: EvaluationSuite) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, benchmark in suite.benchmarks.items():
        source = benchmark.source
        found[source if source and source not in found else name] = suite.score_keys[name]
    return found


def _sources(suite: EvaluationSuite) -> dict[str, str]:
    taught = {
        name: suite.benchmarks[key.partition("/")[0]].source
        for name, key in _abilities(suite).items()
    }
    return {name: source for name, source in taught.items() if source}


def _canonical(stage: Mapping[str, Any], shares: Mapping[str, Share]) -> str:
    """Return a stage in canonical form: shares of 0 are dropped, and 0.25 equals 1/4."""
    # Sorted by name: the order within a mixture has no effect.
    mixture = {
        source: [share.kind, str(share.amount)]
        for source, share in sorted(shares.items())
        if share.amount
    }
    return json.dumps({**stage, "mixture": mixture}, sort_keys=True)


def with_forks(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Return the runs, each with a fork from the earlier run that shares most of its first stages.

    A run always trains its own last stage: runs that share all stages have been merged before.
    """
    placed: list[StudyRun] = []
    for run in runs:
        names = list(run.stages)
        best: tuple[int, StudyRun] | None = None
        for other in placed:
            shared = _shared_stages(run, other)
            if shared and (best is None or shared > best[0]):
                best = shared, other
        fork = SharedStages(best[1].digest, names[best[0] - 1]) if best else None
        placed.append(replace(run, fork=fork))
    return placed


def _shared_stages(run: StudyRun, other: StudyRun) -> int:
    if run.base != other.base:
        return 0
    shared = 0
    for mine, theirs in zip(list(run.stages.items())[:-1], other.stages.items(), strict=False):
        if mine != theirs:
            break
        shared += 1
    return shared


@cache
def planned_code() -> str:
    """Return the digest of the code that this process plans with, computed once."""
    return code_digest()
