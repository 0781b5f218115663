"""The runs of a study: equal cells once, each with a digest, and what can be forked from what."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from sft_lab.config.identity import identity
from sft_lab.cost.run_cost import RunCost
from sft_lab.errors import RequestError
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.launch.build import plan_data
from sft_lab.launch.parser import parse_files
from sft_lab.launch.run_config import RunConfig
from sft_lab.study.design import CellSpec
from sft_lab.study.digests import base_digest, class_digests, code_digest
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.shares import Share

CostOf = Callable[[StagedDataModule, RunConfig], RunCost]


@dataclass(frozen=True)
class SharedStages:
    """The run, and the last of its stages, from whose end another run can start."""

    run: str  # the other run's digest
    stage: str


@dataclass(frozen=True)
class StudyRun:
    """One run that fills one cell, or several that are equal.

    Attributes:
        digest: Of config, data, base and code: equal ones need to run once only.
        cells: The cells that it fills, of which the first names it.
        steps: Optimizer steps of each stage, by name.
        samples: Samples trained on.
        tokens: Tokens trained on, prompts included.
        stages: The stages as they are compared, by name.
        base: Digest of all else that decides its numbers.
        config: Its config; what it leaves to the machine is resolved where the study is planned.
        abilities: Metric key of each benchmark's first score, by the source that teaches it; a
            source's second benchmark, and one without a source, go by the benchmark's own name.
        sources: The source that teaches each ability, by the ability's name, where there is one.
        scores: Metric keys of all scores of which more is better.
        cost: What it will cost without a fork, where it was asked for.
        fork: What it can be forked from.
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
    cost: RunCost | None = None
    fork: SharedStages | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.cells[0].name

    @property
    def steps_to_train(self) -> int:
        """Optimizer steps that are left to train behind the fork."""
        shared = list(self.stages).index(self.fork.stage) + 1 if self.fork else 0
        return sum(list(self.steps.values())[shared:])


def plan_runs(
    cells: Sequence[CellSpec],
    tell: Callable[[int, int], None] = lambda done, total: None,
    cost: CostOf | None = None,
) -> list[StudyRun]:
    """Return the runs that fill all cells, every config checked and laid out as ``fit`` does it.

    Args:
        cells: The cells.
        tell: Called with how many are laid out, of how many.
        cost: Says what a run will cost, by its data and resolved config.

    Raises:
        RequestError: If the config of a cell is wrong, naming the cell.
    """
    found: dict[str, StudyRun] = {}
    for index, cell in enumerate(cells):
        tell(index, len(cells))
        run = plan_run(cell, cost)
        if run.digest in found:
            known = found[run.digest]
            run = replace(known, cells=(*known.cells, cell))
        found[run.digest] = run
    tell(len(cells), len(cells))
    return with_forks(list(found.values()))


def plan_run(cell: CellSpec, cost: CostOf | None = None) -> StudyRun:
    """Lay out one cell, as in ``plan_runs``.

    Raises:
        RequestError: If its config is wrong, naming the cell.
    """
    try:
        config = cell_config(cell)
        data = plan_data(config)
        run = describe(cell, config, data)
        return replace(run, cost=cost(data, config)) if cost is not None else run
    except RequestError as fault:
        raise RequestError(f"cell '{cell.name}': {fault}") from fault


def cell_config(cell: CellSpec) -> RunConfig:
    """Parse the config of a cell.

    Raises:
        RequestError: If ``fit`` would refuse it.
    """
    return parse_files(cell.files, cell.overrides)


def describe(cell: CellSpec, config: RunConfig, data: StagedDataModule) -> StudyRun:
    """Return the run of one cell.

    Args:
        cell: The cell.
        config: Its config.
        data: What that trains on.
    """
    plain = config.plain
    comparable = identity(plain)
    stages = comparable["data"].pop("stages")
    comparable["data"].pop("k", None)  # acts through the shares of stages alone
    parsed = config.values.data.stages
    compared = {name: _canonical(stage, parsed[name].mixture) for name, stage in stages.items()}
    digests = {
        "sources": {name: loaded.digest for name, loaded in data.corpus.loaded.items()},
        "benchmarks": {n: b.digest() for n, b in data.evaluation.benchmarks.items()},
        "code": planned_code(),
        "base": base_digest(str(plain["model"]["base"])),
        "renderer": data.corpus.renderer.fingerprint,
        "classes": class_digests(plain),
        # What a person has hooked into the run may decide its numbers; a resume does not ask.
        "hooks": [plain["trainer"][key] for key in ("callbacks", "plugins")],
    }
    base = _digest([comparable, digests])
    schedule = data.schedule
    seen = schedule.seen(schedule.num_steps)
    return StudyRun(
        digest=_digest([base, list(compared.items())]),
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
    """Return a stage as it is compared: a share of 0 is as none, and 0.25 as 1/4."""
    # In order of names: the order in which a mixture is written decides nothing.
    mixture = {
        source: [share.kind, str(share.amount)]
        for source, share in sorted(shares.items())
        if share.amount
    }
    return json.dumps({**stage, "mixture": mixture}, sort_keys=True)


def with_forks(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Return the runs, each with the earlier one that shares most of its first stages.

    A run trains its own last stage itself, since equal runs have been made one before.
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
    for one, two in zip(list(run.stages.items())[:-1], other.stages.items(), strict=False):
        if one != two:
            break
        shared += 1
    return shared


@cache
def planned_code() -> str:
    """Return the digest of the code that this process plans with, whatever becomes of the files."""
    return code_digest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
