"""The arms of the controls that a question asks for, made from the plans of its own cells.

Each is an ordinary run: the config of the cell that it controls, with a few values changed. What
every control is, ``analysis.controls`` says; the rows of a format-only replay would need a source
of answers without content, which no study has, so there is no such control.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft_lab.analysis.controls import Control
from sft_lab.analysis.groups import amount
from sft_lab.errors import RequestError
from sft_lab.study.design import CellSpec, QuestionDesign, StudyDesign
from sft_lab.study.runs import StudyRun
from sft_lab.training.stage import Stage

Planned = Mapping[str, StudyRun]
"""The run of each cell, by the cell's name."""


def control_cells(design: StudyDesign, runs: Sequence[StudyRun]) -> list[CellSpec]:
    """Return the cells of all controls that a study asks for.

    Raises:
        RequestError: If a control is asked for that changes no cell of its question, if there are
            too few general rows to replace replayed ones, or if ``equal_rate`` is asked for and
            rates differ.
    """
    planned = {cell.name: run for run in runs for cell in run.cells}
    found = []
    for name, question in design.questions.items():
        cells = [cell for run in runs for cell in run.cells if cell.question == name]
        for control in question.controls:
            where = f"questions.{name}.controls"
            if control == "equal_rate":
                _check_rates(where, cells, planned)
                continue
            made = list(_made(control, question, cells, planned, where))
            if not made:
                raise RequestError(f"{where}: {control} changes no arm of this question.")
            found += made
    return found


def _made(
    control: Control,
    question: QuestionDesign,
    cells: Sequence[CellSpec],
    planned: Planned,
    where: str,
) -> Iterator[CellSpec]:
    for cell in cells:
        run = planned[cell.name]
        stages: Mapping[str, Stage] = run.config.values.data.stages
        series = [other for other in cells if _is_in_series(cell, other)]
        if control in ("equal_steps", "equal_tokens"):
            unit = "max_steps" if control == "equal_steps" else "max_tokens"
            if len(stages) == 1 and question.design in ("mixed", "strategies"):
                yield from _alone(cell, control, unit, run, stages)
            elif len(stages) == 1 or control == "equal_steps":
                yield from _at_the_greatest(cell, control, unit, series, planned)
        elif len(stages) == 1:
            continue
        elif control == "fresh_rows" and cell is _least_replay(series, planned):
            yield _fresh(cell, run, stages, where)
        elif cell.axis:
            continue  # a grid of orders and hand-overs would cost more than it says
        elif control == "stage_order":
            yield replace(cell, control=control, stage_order=tuple(reversed(list(stages))))
        elif control == "optimizer":
            yield _with(
                cell,
                control,
                {
                    f"data.stages.{name}.optimizer": "fresh" if s.optimizer == "keep" else "keep"
                    for name, s in list(stages.items())[1:]
                },
            )


def _with(cell: CellSpec, control: Control, values: Mapping[str, Any], alone: str = "") -> CellSpec:
    overrides = {**cell.overrides, **values}
    return replace(cell, overrides=overrides, control=control, alone=alone)


def _limit(stage: str, unit: str, limit: int) -> dict[str, Any]:
    """Return the overrides by which a stage ends at a limit, however often its rows come."""
    others = {"epochs", "max_steps", "max_tokens"} - {unit}
    key = f"data.stages.{stage}"
    return {f"{key}.{unit}": limit, **{f"{key}.{name}": None for name in sorted(others)}}


def _alone(
    cell: CellSpec, control: Control, unit: str, run: StudyRun, stages: Mapping[str, Stage]
) -> Iterator[CellSpec]:
    """Yield each source of a mixture alone, for as many steps or tokens as the mixture."""
    [(name, stage)] = stages.items()
    sources = [source for source, share in stage.mixture.items() if share.amount]
    limit = run.steps[name] if unit == "max_steps" else run.tokens
    for source in sources if len(sources) > 1 else ():
        others = {f"data.stages.{name}.mixture.{o}": 0 for o in stage.mixture if o != source}
        yield _with(cell, control, {**others, **_limit(name, unit, limit)}, source)


def _at_the_greatest(
    cell: CellSpec, control: Control, unit: str, series: Sequence[CellSpec], planned: Planned
) -> Iterator[CellSpec]:
    """Yield a smaller amount with the last stage's steps or tokens of the greatest in its series.

    Of replay shares, only the least is: a claim about more replay starts there.
    """
    run = planned[cell.name]
    last = list(run.steps)[-1]
    sizes = [planned[other.name] for other in series]
    greatest = max(sizes, key=lambda other: other.steps[last])
    of_replay = len(run.steps) > 1
    if (of_replay and cell is not _least_replay(series, planned)) or run is greatest:
        return
    limit = greatest.steps[last] if unit == "max_steps" else greatest.tokens
    if run.steps[last] < greatest.steps[last]:
        yield _with(cell, control, _limit(last, unit, limit))


def _fresh(cell: CellSpec, run: StudyRun, stages: Mapping[str, Stage], where: str) -> CellSpec:
    """Return an arm in which further general rows take the place of the replayed ones."""
    last = list(stages)[-1]
    rows = run.rows[last]
    replayed = _replayed(run)
    [general] = [source for source in rows if source not in replayed]
    needed = sum(rows.values())
    if needed > run.available[general]:
        raise RequestError(
            f"{where}: fresh_rows needs {needed} rows of {general} in place of '{cell.name}', and "
            f"there are {run.available[general]}. Give a smaller share of {general} in all arms "
            f"(data.stages.{last}.mixture.{general}) or a smaller least replay share."
        )
    key = f"data.stages.{last}"
    values: dict[str, Any] = {f"{key}.mixture.{source}": 0 for source in replayed}
    values[f"{key}.mixture.{general}"] = {"rows": needed}
    return _with(cell, "fresh_rows", {**values, **_limit(last, "max_steps", run.steps[last])})


def _replayed(run: StudyRun) -> list[str]:
    """Return the sources of the last stage that an earlier stage trains too."""
    *earlier, last = run.rows
    before = {source for stage in earlier for source in run.rows[stage]}
    found = [source for source in run.rows[last] if source in before]
    return found if len(found) == len(run.rows[last]) - 1 else []


def _least_replay(series: Sequence[CellSpec], planned: Planned) -> CellSpec | None:
    """Return the cell of a series with the least replay that is not none."""
    found = [cell for cell in series if _replayed(planned[cell.name])]
    return min(found, key=lambda c: sum(planned[c.name].steps.values()), default=None)


def _is_in_series(cell: CellSpec, other: CellSpec) -> bool:
    """Return whether cells of one arm and seed differ in their first axis only."""
    others = [list(c.axis.items())[1:] for c in (cell, other)]
    known = all(amount(next(iter(c.axis.values()), "0")) is not None for c in (cell, other))
    return (cell.arm, cell.seed, others[0]) == (other.arm, other.seed, others[1]) and known


def _check_rates(where: str, cells: Sequence[CellSpec], planned: Planned) -> None:
    """Refuse arms that train a source at another peak rate than the others of the question."""
    rates: dict[str, dict[float, str]] = {}
    for cell in cells:
        highest: dict[str, float] = {}
        for stage in planned[cell.name].config.values.data.stages.values():
            for source, share in stage.mixture.items():
                if share.amount:
                    highest[source] = max(stage.lr, highest.get(source, 0.0))
        for source, rate in highest.items():
            rates.setdefault(source, {}).setdefault(rate, cell.name)
    for source, found in rates.items():
        if len(found) > 1:
            texts = ", ".join(f"{rate:g} in '{name}'" for rate, name in sorted(found.items()))
            raise RequestError(
                f"{where}: equal_rate, but {source} is trained at peak rates of {texts}. Set "
                "data.stages.<stage>.lr alike under set of the arms, or leave equal_rate out."
            )
