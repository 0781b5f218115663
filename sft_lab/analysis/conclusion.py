"""The conclusion of a run by itself: which abilities it has forgotten, by paired tests."""

from collections import defaultdict
from collections.abc import Sequence

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.family import corrected_together
from sft_lab.analysis.measurements import Comparison, MarksReader, Measurements, Side
from sft_lab.analysis.verdicts import outcome
from sft_lab.metrics.forgetting import best_boundary
from sft_lab.runs.evaluations import Tracked, history
from sft_lab.runs.results import ItemAnswer, Point, RunResult, read_answers, read_result
from sft_lab.runs.store import RunStore

_WORDS = {"supported": "forgotten", "not supported": "kept"}


def conclusion_of(store: RunStore, run_id: str, points: Sequence[Point]) -> str:
    """Return the conclusion of a recorded run, which may still be training, from its evaluations.

    The answers of two evaluations are read, so that it costs the same however many there are.
    """

    def read(run: RunResult, benchmark: str, step: int) -> list[ItemAnswer]:
        return read_answers(store, run.run_id, benchmark, step)

    return conclusion(read_result(store, store.client.get_run(run_id), points), read)


def conclusion(run: RunResult, reader: MarksReader) -> str:
    """Return in one sentence what a run has forgotten by its newest full evaluation.

    Where forgetting is defined, an ability is ``forgotten``, ``kept`` or ``inconclusive``: the
    claim that it fell since its best earlier boundary is supported, not supported or inconclusive,
    by paired tests on the same items. p is corrected for the boundaries that the best was chosen
    from (Bonferroni) and for the number of abilities (Holm). A run is one seed and says nothing of
    others.

    Args:
        run: The run; its newest evaluations may cover a part of the items.
        reader: Its answers.
    """
    full = [number for number, point in enumerate(run.points) if not point.partial]
    points = run.points[: full[-1] + 1] if full else ()
    if not points or not run.abilities:
        return "Forgetting in this run: no ability has been measured on all its items yet."
    measured = Measurements(reader)
    tested = corrected_together(lambda family: _tested(run, points, measured.within(family)))
    waiting: defaultdict[str, list[str]] = defaultdict(list)
    now, end = points[-1].step, sum(run.stages.values())
    for name, tracked in run.abilities.items():
        if name not in tested:
            waiting[_why_undefined(tracked, points, end)].append(name)
    parts = [
        forgetting_text(name, found, first=not n) for n, (name, found) in enumerate(tested.items())
    ]
    parts += [f"{', '.join(names)} {why}" for why, names in waiting.items()]
    when = "in this run" if now == end else f"by step {now:,} of {end:,} of this run"
    return f"Forgetting {when} (1 seed): {'; '.join(parts)}."


def _tested(
    run: RunResult, points: Sequence[Point], measured: Measurements
) -> dict[str, Comparison]:
    """Return the comparisons of the last point with each ability's best boundary before it."""
    found: dict[str, Comparison] = {}
    for name, tracked in run.abilities.items():
        if "forgetting" not in tracked.changes(points):
            continue
        last, known = points[-1], history(points, tracked.key)
        best = best_boundary(known, last.step)
        assert best is not None  # forgetting is defined
        reference = next(point for point in points if point.step == best.step)
        benchmark = run.benchmarks[tracked.key.partition("/")[0]]
        found[name] = measured.compare(
            "",
            Ability(name, tracked.key, benchmark.scale, benchmark.source),
            Side(reference.after or "base", {run.seed: (run, reference)}),
            Side("now", {run.seed: (run, last)}),
            same_runs=True,
            chosen_from=sum(at.is_boundary and at.is_full and at.step < last.step for at in known),
        )
    return found


def forgetting_text(name: str, found: Comparison, first: bool) -> str:
    """Return a comparison with the best boundary: ``math forgotten, -58.0 points [-69.1, -44.2]``.

    The interval is that of one test alone. Where it does not show why a test of several is
    inconclusive, the corrected p does.
    """
    if (difference := found.difference) is None:
        return f"{name} not tested: {found.why_not}"
    value, low, high = (
        found.ability.text(number) for number in (difference.value, difference.low, difference.high)
    )
    verdict = outcome("lower", found)
    unit = " points" if first else ""
    text = f"{name} {_WORDS.get(verdict, verdict)}, {value}{unit} [{low}, {high}]"
    return f"{text}, p {found.p_holm:.2f}" if verdict == "inconclusive" else text


def _why_undefined(tracked: Tracked, points: Sequence[Point], end: int) -> str:
    """Return why an ability has no forgetting at the last point."""
    now, trained_at = points[-1].step, tracked.trained_at
    if trained_at is None:
        return "not trained"
    if now < trained_at:
        return "not trained yet"
    if all(at.step < trained_at for at in history(points[:-1], tracked.key) if at.is_full):
        return "trained last" if now == end else "just trained"
    return "never above chance"
