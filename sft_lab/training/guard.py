"""A guard against forgetting: its settings, and the checks of them."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from sft_lab.config.ranges import NonNegativeFloat, PositiveShare
from sft_lab.errors import RequestError, nearest
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.training.order import DataOrder, EvenOrder, OrderName, find_order
from sft_lab.training.replan import PlanChange
from sft_lab.training.shares import Share, parse_share
from sft_lab.training.stage import Stage, trains

if TYPE_CHECKING:
    from sft_lab.training.data_modules import StagedDataModule


@dataclass(frozen=True)
class Guard:
    """Settings of a guard, which adjusts the replay of a stage to the evaluations during it.

    A guarded source is one that teaches an ability with a limit. The stage starts with the shares
    of its mixture; at each evaluation inside it, a guarded source's share moves one step up the
    ladder if an ability is below its limit on the selection items, and one down if there is room.
    See ``assess``.

    Args:
        stage: The stage whose replay is adjusted.
        min_retention: By score, ``world_math/format_free``, the part of its best earlier value
            to retain, in (0, 1].
        shares: The ladder of shares, ascending.
        room: Margin above the limit that an ability must significantly exceed before a share is
            lowered, as a part of the best earlier score.
    """

    stage: str
    min_retention: dict[str, PositiveShare]
    shares: list[Share] = field(  # each four times the previous one
        default_factory=lambda: [parse_share(v) for v in (0, "1/256", "1/64", "1/16", "1/4")]
    )
    room: NonNegativeFloat = 0.05

    def __post_init__(self) -> None:
        """Parse shares that are given as plain values; the parser of configs gives parsed ones."""
        object.__setattr__(self, "shares", [parse_share(share) for share in self.shares])

    def sources(self, suite: EvaluationSuite) -> dict[str, list[str]]:
        """Return the scores with a limit by guarded source."""
        found: dict[str, list[str]] = {}
        for key in self.min_retention:
            source = suite.benchmarks[key.partition("/")[0]].source
            assert source is not None  # checked by check_guard
            found.setdefault(source, []).append(key)
        return found

    def benchmarks(self) -> set[str]:
        """Return the benchmarks whose selection items decide."""
        return {key.partition("/")[0] for key in self.min_retention}

    def start(self, source: str, stage: Stage) -> int:
        """Return the place on the ladder of a source's share in the mixture.

        Raises:
            RequestError: If it is not on the ladder.
        """
        key = f"data.stages.{self.stage}.mixture.{source}"
        share = stage.mixture[source]
        if share not in self.shares:
            raise RequestError(
                f"{key}: the guard starts there, so it must be one of data.guard.shares, "
                f"{', '.join(map(str, self.shares))}; got {stage.mixture[source]}."
            )
        return self.shares.index(share)

    def prepare(self, data: "StagedDataModule") -> None:
        """Cut the stage one step after each evaluation, where a decision can take effect.

        Raises:
            RequestError: If nothing can be decided in the stage, or a share has no row.
        """
        every = data.evaluation.every_n_steps
        assert every is not None  # checked by check_guard
        module, first_step = data.module_of(self.stage), data.first_step(self.stage)
        first_cut = every - first_step % every + 1
        if first_cut >= module.plan.num_steps:
            raise RequestError(
                f"data.guard: no evaluation is far enough inside stage '{self.stage}' to decide "
                f"anything: it trains from step {first_step} to "
                f"{first_step + module.plan.num_steps}, and evaluation.every_n_steps is {every}; "
                "set it lower."
            )
        module.cuts = range(first_cut, sys.maxsize, every)
        for source in self.sources(data.evaluation):
            for index, share in enumerate(self.shares):
                if share.amount and not data.rows_of_share(source, share):
                    raise RequestError(
                        f"data.guard.shares: {self.shares[index]} of '{source}' selects no row; "
                        "leave it out of the ladder."
                    )

    def change(self, step: int, places: Mapping[str, int], suite: EvaluationSuite) -> PlanChange:
        """Return the plan change for new places on the ladder by source, after ``step`` steps."""
        shares = {source: self.shares[index].written for source, index in places.items()}
        return PlanChange(self.stage, step, shares, list(self.sources(suite)))


def check_guard(
    guard: Guard, stages: Mapping[str, Stage], suite: EvaluationSuite, order: OrderName | DataOrder
) -> None:
    """Check everything about a guard that does not depend on the data.

    Raises:
        RequestError: Naming the key, its value and the fix.
    """
    if guard.stage not in stages:
        raise RequestError(
            f"data.guard.stage: no stage {guard.stage!r}{nearest(guard.stage, stages)}; "
            f"data.stages has {', '.join(stages)}."
        )
    _check_stage(guard.stage, stages[guard.stage], order)
    _check_ladder(guard)
    if suite.every_n_steps is None:
        raise RequestError(
            "data.guard decides at evaluations inside its stage; set evaluation.every_n_steps."
        )
    if suite.split is None:
        raise RequestError(
            "data.guard chooses by scores, so it needs items that are not reported; set "
            "evaluation.split: 0.5."
        )
    if not guard.min_retention:
        raise RequestError(
            "data.guard.min_retention is empty; give limits by score, such as "
            f"{{{next(iter(suite.score_keys.values()), 'world_math/format_free')}: 0.9}}."
        )
    mixture = stages[guard.stage].mixture
    for score, limit in guard.min_retention.items():
        _check_limit(guard, score, limit, mixture, suite)
    sources = guard.sources(suite)
    for source in sources:
        guard.start(source, stages[guard.stage])
    if not any(trains(stages[guard.stage], source) for source in mixture if source not in sources):
        raise RequestError(
            f"data.guard: every source that stage '{guard.stage}' trains is guarded; a replay "
            "share is relative to other sources. Guard fewer, or add a source to the mixture."
        )


def _check_stage(name: str, stage: Stage, order: OrderName | DataOrder) -> None:
    key = f"data.stages.{name}"
    if stage.epochs is None:
        raise RequestError(
            f"{key} is guarded, so its end must not move with the replay: give epochs."
        )
    for setting in ("max_steps", "max_tokens", "total", "temperature"):
        value = getattr(stage, setting)
        if value is not None:
            raise RequestError(
                f"{key}.{setting}: a guarded stage trains its other sources for its epochs, "
                f"whatever is replayed, got {value}; leave it out."
            )
    if not isinstance(find_order(order), EvenOrder):
        raise RequestError(f"data.order must be even where data.guard is set, got {order}.")


def _check_ladder(guard: Guard) -> None:
    ladder = guard.shares
    shown = ", ".join(map(str, guard.shares))
    if len(ladder) < 2:
        raise RequestError(f"data.guard.shares needs at least two shares, got {shown or 'none'}.")
    if len({share.kind for share in ladder}) > 1:
        raise RequestError(f"data.guard.shares must all be of one kind, got {shown}.")
    if any(low.amount >= high.amount for low, high in pairwise(ladder)):
        raise RequestError(f"data.guard.shares must rise from each to the next, got {shown}.")


def _check_limit(
    guard: Guard,
    score: str,
    limit: float,
    mixture: Mapping[str, Share],
    suite: EvaluationSuite,
) -> None:
    key = f"data.guard.min_retention.{score}"
    known = [
        f"{name}/{part}"
        for name, benchmark in suite.benchmarks.items()
        for part in benchmark.score_names
        if benchmark.is_ability(part)
    ]
    if score not in known:
        raise RequestError(
            f"{key}: no benchmark has this score{nearest(score, known)}; "
            f"evaluation.benchmarks measure {', '.join(known) or 'none'}."
        )
    if not suite.is_mean_of_items(score):
        means = [name for name in known if suite.is_mean_of_items(name)]
        raise RequestError(
            f"{key}: the guard compares item by item, and this score is not a mean over items; "
            f"such scores are: {', '.join(means) or 'none'}."
        )
    benchmark = score.partition("/")[0]
    source = suite.benchmarks[benchmark].source
    if source is None:
        raise RequestError(
            f"{key}: the benchmark has no source; set "
            f"evaluation.benchmarks.{benchmark}.init_args.source."
        )
    if source not in mixture:
        raise RequestError(
            f"{key}: its source {source!r} is not in the mixture of stage '{guard.stage}', which "
            f"has {', '.join(mixture)}; add {source} with its first share, 0 for none."
        )
