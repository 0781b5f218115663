"""A stage: one mixture trained for some epochs, steps or tokens; its settings and its rows."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from sft_lab.config.ranges import PositiveFloat, UnitInterval
from sft_lab.data.corpus import Corpus
from sft_lab.errors import RequestError, nearest
from sft_lab.model.adapter_config import Adapters, Lora
from sft_lab.terminal import counted
from sft_lab.training.hand_over import Continue, HandOver
from sft_lab.training.loss import LossTerm
from sft_lab.training.order import DataOrder, OrderName
from sft_lab.training.plan import StagePlan, plan_stage
from sft_lab.training.shares import Share, Size, parse_share, take, weighed


@dataclass(frozen=True)
class Stage:
    """One stage as a config writes it.

    Args:
        mixture: Shares by source; weights where the stage has a total.
        lr: Peak learning rate of the stage, above 0 and at most 1.
        total: Size of the mixture, ``{rows: n}`` or ``{tokens: n}``; shares are then weights.
        temperature: Weighs sources by their amounts to the power of 1 / temperature, above 0.
        epochs: Passes over the mixture.
        max_steps: Optimizer steps.
        max_tokens: Tokens, prompts included. The stage ends at the first limit that is reached.
        warmup_ratio: Part of the stage's steps over which the rate rises from 0, in [0, 1].
        lr_schedule: Shape of the rate after warm-up; cosine and linear end at 0.
        optimizer: ``fresh`` drops the moments of the stage before, ``keep`` carries them over.
        hand_over: Policy for optimizer and adapters at the stage's start; replaces ``optimizer``.
        loss: Weights of target tokens and penalties on top of the negative log-likelihood.
    """

    mixture: dict[str, Share]
    lr: Annotated[float, Gt(0), Le(1)]
    total: Share | None = None
    temperature: PositiveFloat | None = None
    epochs: Annotated[int, Ge(1), Le(10_000)] | None = None
    max_steps: Annotated[int, Ge(1), Le(10**8)] | None = None
    max_tokens: Annotated[int, Ge(1), Le(10**13)] | None = None
    warmup_ratio: UnitInterval = 0.1
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    optimizer: Literal["fresh", "keep"] = "fresh"
    hand_over: HandOver | None = None
    loss: list[LossTerm] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Parse shares that are given as plain values; the parser of configs gives parsed ones."""
        parsed = {source: parse_share(share) for source, share in self.mixture.items()}
        object.__setattr__(self, "mixture", parsed)
        if self.total is not None:
            object.__setattr__(self, "total", parse_share(self.total))

    @property
    def start(self) -> HandOver:
        """Return the policy applied when the stage starts."""
        return self.hand_over or Continue(self.optimizer)


_MOST_PASSES = 1000


def trains(stage: Stage, source: str | None) -> bool:
    """Return whether a stage's mixture has a share of a source that is not 0."""
    return source in stage.mixture and stage.mixture[source].amount > 0


def check_stages(stages: Mapping[str, Stage], sources: Iterable[str]) -> None:
    """Check everything about a schedule that does not depend on the data.

    Raises:
        RequestError: Naming the key, its value and the fix.
    """
    known = list(sources)
    if not stages:
        raise RequestError("data.stages is empty; a strategy needs at least one stage.")
    for name, stage in stages.items():
        key = f"data.stages.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
            raise RequestError(
                f"{key}: a stage name becomes a folder; use letters, digits, - and _ only, at most "
                "60."
            )
        if not stage.mixture:
            raise RequestError(
                f"{key}.mixture is empty; give shares by source, such as {{{known[0]}: 1}}."
            )
        for source in stage.mixture:
            if source not in known:
                raise RequestError(
                    f"{key}.mixture names the source {source!r}{nearest(source, known)}; "
                    f"corpus.sources has {', '.join(known)}."
                )
        if stage.total is not None and stage.total.amount == 0:
            raise RequestError(f"{key}.total must be above 0, got {stage.total}.")
        if stage.epochs is None and stage.max_steps is None and stage.max_tokens is None:
            raise RequestError(f"{key} has no end; give epochs, max_steps or max_tokens.")
    _check_hand_overs(stages)


def _check_hand_overs(stages: Mapping[str, Stage]) -> None:
    stacked: str | None = None
    for index, (name, stage) in enumerate(stages.items()):
        if stage.hand_over is None:
            continue
        key, policy = f"data.stages.{name}.hand_over", type(stage.hand_over).__name__
        if index == 0:
            raise RequestError(
                f"{key}: nothing is handed over to the first stage, got {policy}; leave it out."
            )
        if stage.optimizer != "fresh":
            raise RequestError(
                f"data.stages.{name}.optimizer is short for a hand_over, got {stage.optimizer} "
                f"next to {policy}; leave one of them out."
            )
        if stacked is not None and stage.hand_over.needs_ends:
            raise RequestError(
                f"{key}: {policy} needs the ends of all stages, and stage '{stacked}' starts a new "
                "adapter, which cannot be averaged with the one before; use another policy."
            )
        if stage.hand_over.stacks_adapters:
            stacked = name


def check_needs(stages: Mapping[str, Stage], adapters: Adapters | None) -> None:
    """Check that the model has the adapters that loss terms and hand-over policies need.

    Raises:
        RequestError: Naming the key.
    """
    if isinstance(adapters, Lora):
        return
    for name, stage in stages.items():
        key = f"data.stages.{name}"
        needing: list[tuple[str, object]] = []
        if adapters is None or adapters.changes_base:
            needing += [(f"{key}.loss", term) for term in stage.loss if term.needs_base_logits]
        if stage.hand_over is not None and stage.hand_over.stacks_adapters:
            needing.append((f"{key}.hand_over", stage.hand_over))
        for where, found in needing:
            raise RequestError(
                f"{where}: {type(found).__name__} needs the LoRA adapters of model.lora, which is "
                "null; give model.lora, or leave it out."
            )


def choose_rows(name: str, stage: Stage, corpus: Corpus) -> dict[str, list[int]]:
    """Return the rows of a stage's mixture, indices by source, in hash rank order.

    Raises:
        RequestError: If a share that is not 0 selects no row, or absurdly many.
    """
    key = f"data.stages.{name}.mixture"
    asked = {source: share for source, share in stage.mixture.items() if share.amount}
    trainable = {source: corpus.loaded[source].trainable for source in asked}
    sizes = {
        source: Size(len(rows), int(corpus.loaded[source].num_tokens[rows].sum()))
        for source, rows in trainable.items()
    }
    shares = weighed(key, asked, sizes, total=stage.total, temperature=stage.temperature)
    chosen: dict[str, list[int]] = {}
    for source, share in shares.items():
        value, size = stage.mixture[source], sizes[source]
        whole = {"multiple": 1, "rows": size.rows, "tokens": size.tokens}[share.kind]
        if share.amount > _MOST_PASSES * whole:
            raise RequestError(
                f"{key}.{source}: {value} is more than {_MOST_PASSES} times the source, which has "
                f"{counted(size.rows, 'row')} and {counted(size.tokens, 'token')}. A bare number "
                "is a multiple of it; write {rows: 500} for a count."
            )
        rows = take(share, trainable[source], corpus.loaded[source].num_tokens)
        if not rows:
            raise RequestError(
                f"{key}.{source}: a share of {value} of {counted(size.rows, 'row')} selects no "
                "row; write 0 to leave the source out, or a larger share."
            )
        chosen[source] = rows
    if not chosen:
        raise RequestError(f"{key}: every share is 0, so there is nothing to train on.")
    return chosen


def plan(
    name: str,
    stage: Stage,
    corpus: Corpus,
    *,
    batch_size: int,
    order: OrderName | DataOrder,
    packing: bool,
    seed: int,
) -> StagePlan:
    """Lay out one stage over the loaded corpus."""
    return plan_stage(
        name,
        choose_rows(name, stage, corpus),
        {source: loaded.num_tokens for source, loaded in corpus.loaded.items()},
        batch_size=batch_size,
        order=order,
        packed_length=corpus.max_length if packing else None,
        seed=seed,
        epochs=stage.epochs,
        max_steps=stage.max_steps,
        max_tokens=stage.max_tokens,
    )
