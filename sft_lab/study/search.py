"""Run arms that search: choose each next run by the answers of the earlier ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sft_lab.analysis.outcomes import Outcomes, graded_in_all, outcomes
from sft_lab.analysis.study_results import SearchResult
from sft_lab.errors import RequestError, nearest
from sft_lab.launch.build import build_data
from sft_lab.metrics.forgetting import best_boundary
from sft_lab.runs.evaluations import selection_history
from sft_lab.runs.results import SELECTION, Point, RunResult, read_answers, read_result
from sft_lab.runs.store import RunStore
from sft_lab.study.design import Arm, CellSpec, Search, StudyDesign, arm_cells
from sft_lab.study.halving import Found, Retained, Trial, assess, search
from sft_lab.study.runs import cell_config


class SearchKey(NamedTuple):
    """Question and arm of a search."""

    question: str
    arm: str


@dataclass(frozen=True)
class ArmSearch:
    """The search of one arm.

    Attributes:
        key: Question and arm.
        arm: The arm.
        search: Its settings.
        cells: All cells of its grid; a search runs only some of them.
    """

    key: SearchKey
    arm: Arm
    search: Search
    cells: Sequence[CellSpec]

    def next(self, run_ids: Mapping[str, str | None], store: RunStore) -> CellSpec | Found | None:
        """Return the cell that is needed next, or the result; None if a run has failed.

        Args:
            run_ids: Runs tried so far, by cell name; None for one that failed.
            store: The store that holds them.
        """
        cell_at = {(cell.axis[self.search.axis], cell.seed): cell for cell in self.cells}
        failed = False

        def conclude(value: str, seeds: Sequence[int]) -> Retained | None:
            nonlocal failed
            names = [cell_at[value, seed].name for seed in seeds]
            if any(name not in run_ids for name in names):
                return None
            ids = [run_ids[name] for name in names]
            if any(run_id is None for run_id in ids):
                failed = True
                return None
            marks = retained_marks(store, [str(run_id) for run_id in ids], self.search.retention)
            return assess(marks, self.search.retention, self.search.confidence, len(all_seeds))

        values = list(map(str, self.arm.grid[self.search.axis].values))
        all_seeds = list(dict.fromkeys(cell.seed for cell in self.cells))
        step = search(values, all_seeds, conclude)
        if failed:
            return None
        return cell_at[step.value, step.seed] if isinstance(step, Trial) else step


def searches(design: StudyDesign) -> Iterator[ArmSearch]:
    """Yield the arms of a study that search."""
    for name, question in design.questions.items():
        for arm_name, arm in question.arms.items():
            if arm.search is not None:
                found = arm_cells(design, name, arm_name, arm, question.seeds)
                yield ArmSearch(SearchKey(name, arm_name), arm, arm.search, found)


def check_search(arm_search: ArmSearch, scores: Sequence[str]) -> None:
    """Check that every limited score of a search exists and is a mean over items.

    Raises:
        RequestError: If one does not or is not; names it and the possible ones.
    """
    question, arm = arm_search.key
    where = f"questions.{question}.arms.{arm}.search.retention"
    for key in arm_search.search.retention:
        if key not in scores:
            raise RequestError(
                f"{where}: no run measures {key!r}{nearest(key, scores)}; its scores are "
                f"{', '.join(scores)}."
            )
    suite = build_data(cell_config(arm_search.cells[0])).evaluation
    if suite.split is None:
        raise RequestError(
            f"questions.{question}.arms.{arm}.search chooses by scores, so it needs items that are "
            "not reported; set evaluation.split: 0.5 in the config of its runs."
        )
    for key in arm_search.search.retention:
        if not suite.is_mean_of_items(key):
            means = [score for score in scores if suite.is_mean_of_items(score)]
            raise RequestError(
                f"{where}: a search compares item by item, but {key} is not a mean over items; "
                f"use one of: {', '.join(means) or 'none'}."
            )


def retained_marks(
    store: RunStore, run_ids: Sequence[str], keys: Mapping[str, float]
) -> dict[str, tuple[list[list[float]], list[list[float]], list[str]]]:
    """Return, by metric key, each run's marks at its best boundary before the end, and at the end.

    The last part is the cluster of each item.

    Only selection items are read, and of those the ones that all of these evaluations could grade.
    """
    results = [read_result(store, store.client.get_run(run_id)) for run_id in run_ids]
    marks = {}
    for key in keys:
        best = [_outcomes(store, result, _best_before(result, key), key) for result in results]
        now = [_outcomes(store, result, result.boundaries[-1], key) for result in results]
        items = graded_in_all([*best, *now])
        marks[key] = (
            [[found.marks[item] for item in items] for found in best],
            [[found.marks[item] for item in items] for found in now],
            [now[0].clusters[item] for item in items],
        )
    return marks


def _best_before(result: RunResult, key: str) -> Point:
    """Return the best boundary before the last one, the reference of forgetting."""
    best = best_boundary(selection_history(result.points, key), result.boundaries[-1].step)
    return next(point for point in result.boundaries if best and point.step == best.step)


def _outcomes(store: RunStore, result: RunResult, point: Point, key: str) -> Outcomes:
    benchmark, _, name = key.partition("/")
    mark = result.benchmarks[benchmark].marks[name]
    if mark is None:
        raise RequestError(f"a search cannot compare {key}: it is not a mean over items.")
    answers = read_answers(store, result.run_id, benchmark, point.step, SELECTION)
    return outcomes(answers, mark)


RunCell = Callable[[CellSpec], str | None]


def run_searches(
    design: StudyDesign, store: RunStore, run_cell: RunCell
) -> dict[SearchKey, Found | None]:
    """Run all searches to their ends and return the results, None for one with a failed run.

    Args:
        design: The study.
        store: The store of its runs.
        run_cell: Runs a cell and returns its run's id, or None if it fails.
    """
    found: dict[SearchKey, Found | None] = {}
    for arm_search in searches(design):
        run_ids: dict[str, str | None] = {}
        while isinstance(step := arm_search.next(run_ids, store), CellSpec):
            run_ids[step.name] = run_cell(step)
        found[arm_search.key] = step
    return found


def search_results(
    design: StudyDesign, found: Mapping[SearchKey, Found | None]
) -> list[SearchResult]:
    """Return the results of the searches that have ended, as plain data."""
    return [
        SearchResult(
            question=arm_search.key.question,
            arm=arm_search.key.arm,
            axis=arm_search.search.axis,
            retention=arm_search.search.retention,
            confidence=arm_search.search.confidence,
            value=result.value,
            retained=result.retained,
            trials=result.trials,
            grid=len(arm_search.cells),
            seeds=result.seeds,
        )
        for arm_search in searches(design)
        if (result := found.get(arm_search.key)) is not None
    ]
