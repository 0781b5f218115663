"""The record of a run, ``record.json``: its sources, stages and benchmarks, as one typed schema.

It is written when a run starts and read by everything that needs the run later.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.runs.store import RunStore
from sft_lab.training.shares import parse_share

RECORD = "record.json"
SCHEMA = 3
"""Version of the record; a change that an older version could not read counts it up."""


@dataclass(frozen=True)
class SourceRecord:
    """A source as it was read.

    Attributes:
        path: Its file.
        digest: sha256 of its rows.
        rows: Rows that were read.
        held_out: Rows that are never trained, for the validation loss.
        report: What the intake dropped, and why.
    """

    path: str
    digest: str
    rows: int
    held_out: int
    report: Mapping[str, Any]


@dataclass(frozen=True)
class StageRecord:
    """A stage as it was planned.

    Attributes:
        steps: Optimizer steps.
        passes: Passes over the mixture, or the parts into which passes are cut.
        asked: Shares by source, as the config has them.
        trained: By source, ``samples``, ``tokens`` and ``target_tokens`` that are trained.
        manifest_digest: sha256 of the list of its samples.
    """

    steps: int
    passes: int
    asked: Mapping[str, Any]
    trained: Mapping[str, Mapping[str, int]]
    manifest_digest: str

    def trains(self, source: str | None) -> bool:
        """Return whether the stage's mixture has a share of a source that is not 0."""
        if source is None or source not in self.asked:
            return False
        return parse_share(self.asked[source]).amount > 0


@dataclass(frozen=True)
class BenchmarkRecord:
    """A benchmark as it was measured.

    Attributes:
        digest: sha256 of protocol and items: scores compare only where it is equal.
        protocol: The settings that decide a score, apart from the items; ``scores`` are the names
            of its scores.
        decoding: How answers are generated.
        weights: The weights that answers are generated with.
        prompts: sha256 of the rendered prompts.
        items: Number of items, of both parts of a split.
        turns: Most answers to an item.
        scale: Least and greatest value of the scores.
        chance: The score of guessing.
        marks: By score name, the mark in the answers that the score is the mean of over items; None
            for a score that is not such a mean.
        source: The source that teaches the ability, or None.
        conditions: What grading ran under, which changes no verdict.
        agrees_with: The published protocol that grades as a score does, by the score's name.
        strict_score: Name of the score that also requires the asked form, or None.
        form_mark: Name of the mark in the answers that says whether one has that form, or None.
        split: ``fraction``, counts and digest of the split into selection and report items; None
            where all items are reported.
        references: Number of items whose reference answer is part of ``answer_loss/<source>``.
    """

    digest: str
    protocol: Mapping[str, Any]
    decoding: Mapping[str, Any]
    weights: str
    prompts: str
    items: int
    turns: int
    scale: tuple[float, float]
    source: str | None
    chance: float
    marks: Mapping[str, str | None]
    conditions: Mapping[str, str]
    agrees_with: Mapping[str, str]
    strict_score: str | None = None
    form_mark: str | None = None
    split: Mapping[str, Any] | None = None
    references: int = 0

    @property
    def score_names(self) -> list[str]:
        """Names of the scores; the first represents the benchmark."""
        return list(self.protocol["scores"])

    @property
    def is_share(self) -> bool:
        """Whether scores lie in [0, 1]."""
        return self.scale == (0, 1)

    @property
    def reported(self) -> int:
        """How many of the items are report items, from which scores come."""
        return int(self.split["report"]) if self.split else self.items


@dataclass(frozen=True)
class RunRecord:
    """The data and benchmarks of a run.

    Attributes:
        sources: By name.
        stages: By name, in the order of training.
        benchmarks: By name.
        abilities: Metric key of the primary score of each ability that is followed, by name.
        commits: The commit of everything that came from the hub, by the config key that names it.
    """

    sources: Mapping[str, SourceRecord]
    stages: Mapping[str, StageRecord]
    benchmarks: Mapping[str, BenchmarkRecord]
    abilities: Mapping[str, str]
    commits: Mapping[str, str] = field(default_factory=dict)

    def trained_at(self, source: str | None) -> int | None:
        """Return the optimizer steps at the end of the first stage that trains a source."""
        end_step = 0
        for stage in self.stages.values():
            end_step += stage.steps
            if stage.trains(source):
                return end_step
        return None

    def to_json(self) -> str:
        """Return the record as the text of its file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str, whose: str) -> "RunRecord":
        """Read a record.

        Args:
            text: Content of its file.
            whose: The run, for errors.

        Raises:
            RequestError: If another version of the lab wrote it.
        """
        content = json.loads(text)
        if content.pop("schema", None) != SCHEMA:
            raise RequestError(
                f"{whose}: {RECORD} was written by another version of sft_lab; read the run with "
                f"that one (this version reads schema {SCHEMA})."
            )
        return cls(
            sources={name: SourceRecord(**found) for name, found in content["sources"].items()},
            stages={name: StageRecord(**found) for name, found in content["stages"].items()},
            benchmarks={
                name: BenchmarkRecord(**{**found, "scale": tuple(found["scale"])})
                for name, found in content["benchmarks"].items()
            },
            abilities=content["abilities"],
            commits=content["commits"],
        )


def read_record(store: RunStore, run_id: str) -> RunRecord:
    """Return a run's record.

    Raises:
        RequestError: If the run has none, since it was stopped before, or an unknown version.
    """
    return store.artifact(
        run_id, RECORD, lambda text: RunRecord.from_json(text, f"run {run_id[:8]}")
    )
