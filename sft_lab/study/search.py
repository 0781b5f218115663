"""Arms that search: the runs that they need one after the other, judged by their answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sft_lab.analysis.forgetting import history_of
from sft_lab.analysis.outcomes import Outcomes, graded_in_all, outcomes
from sft_lab.analysis.study_results import SearchResult
from sft_lab.errors import RequestError, nearest
from sft_lab.launch.build import build_data
from sft_lab.metrics.forgetting import best_boundary
from sft_lab.runs.results import Point, RunResult, read_answers, read_result
from sft_lab.runs.store import RunStore
from sft_lab.study.design import Arm, CellSpec, Search, StudyDesign, arm_cells
from sft_lab.study.halving import Found, Retained, Trial, judge, search
from sft_lab.study.runs import cell_config


class SearchKey(NamedTuple):
    """An arm that searches."""

    question: str
    arm: str


@dataclass(frozen=True)
class ArmSearch:
    """One search.

    Attributes:
        key: Question and arm.
        arm: The arm.
        search: What it looks for.
        cells: All cells of its grid, of which it runs some.
    """

    key: SearchKey
    arm: Arm
    search: Search
    cells: Sequence[CellSpec]

    def next(self, run_ids: Mapping[str, str | None], store: RunStore) -> CellSpec | Found | None:
        """Return the cell that is needed next, or the result; None where a run has failed.

        Args:
            run_ids: By cell name, the run of those that were tried; None of one that failed.
            store: The store that holds them.
        """
        by_place = {(cell.axis[self.search.axis], cell.seed): cell for cell in self.cells}
        failed = False

        def judged(value: str, seeds: Sequence[int]) -> Retained | None:
            nonlocal failed
            names = [by_place[value, seed].name for seed in seeds]
            if any(name not in run_ids for name in names):
                return None
            ids = [run_ids[name] for name in names]
            if any(run_id is None for run_id in ids):
                failed = True
                return None
            marks = retained_marks(store, [str(run_id) for run_id in ids], self.search.retention)
            return judge(marks, self.search.retention, self.search.confidence, len(all_seeds))

        values = list(map(str, self.arm.grid[self.search.axis].values))
        all_seeds = list(dict.fromkeys(cell.seed for cell in self.cells))
        step = search(values, all_seeds, judged)
        if failed:
            return None
        return by_place[step.value, step.seed] if isinstance(step, Trial) else step


def searches(design: StudyDesign) -> Iterator[ArmSearch]:
    """Yield the arms of a study that search."""
    for name, question in design.questions.items():
        for arm_name, arm in question.arms.items():
            if arm.search is not None:
                found = arm_cells(design, name, arm_name, arm, question.seeds)
                yield ArmSearch(SearchKey(name, arm_name), arm, arm.search, found)


def check_search(one: ArmSearch, scores: Sequence[str]) -> None:
    """Refuse a search by a score that its runs do not have, or that is no mean over items.

    Raises:
        RequestError: Naming the score, and the right ones.
    """
    where = f"questions.{one.key.question}.arms.{one.key.arm}.search.retention"
    for key in one.search.retention:
        if key not in scores:
            raise RequestError(
                f"{where}: no run measures {key!r}{nearest(key, scores)}; there are "
                f"{', '.join(scores)}."
            )
    suite = build_data(cell_config(one.cells[0])).evaluation
    for key in one.search.retention:
        if not suite.is_mean_of_items(key):
            means = [score for score in scores if suite.is_mean_of_items(score)]
            raise RequestError(
                f"{where}: a search compares item by item, and {key} is no mean of marks of items; "
                f"these are: {', '.join(means) or 'none'}."
            )


def retained_marks(
    store: RunStore, run_ids: Sequence[str], keys: Mapping[str, float]
) -> dict[str, tuple[list[list[float]], list[list[float]]]]:
    """Return an ability's marks at its best boundary before the end, and at the end, by run.

    Items are those that all of these evaluations could grade, the same in each.
    """
    results = [read_result(store, store.client.get_run(run_id)) for run_id in run_ids]
    marks = {}
    for key in keys:
        best = [_outcomes(store, result, best_before(result, key), key) for result in results]
        now = [_outcomes(store, result, result.boundaries[-1], key) for result in results]
        items = graded_in_all([*best, *now])
        marks[key] = (
            [[found.marks[item] for item in items] for found in best],
            [[found.marks[item] for item in items] for found in now],
        )
    return marks


def best_before(result: RunResult, key: str) -> Point:
    """Return the best boundary before the last one, the reference of forgetting."""
    best = best_boundary(history_of(result, key), result.boundaries[-1].step)
    return next(point for point in result.boundaries if best and point.step == best.step)


def _outcomes(store: RunStore, result: RunResult, point: Point, key: str) -> Outcomes:
    benchmark, _, name = key.partition("/")
    mark = result.benchmarks[benchmark].marks[name]
    if mark is None:
        raise RequestError(f"a search cannot go by {key}: it is no mean over items.")
    return outcomes(read_answers(store, result.run_id, benchmark, point.step), mark)


RunCell = Callable[[CellSpec], str | None]


def run_searches(
    design: StudyDesign, store: RunStore, run_cell: RunCell
) -> dict[SearchKey, Found | None]:
    """Run what every search needs, until each has come to its result.

    Args:
        design: The study.
        store: The store of its runs.
        run_cell: Runs a cell and returns its run's id, None where it fails.
    """
    found: dict[SearchKey, Found | None] = {}
    for one in searches(design):
        run_ids: dict[str, str | None] = {}
        while True:
            step = one.next(run_ids, store)
            if isinstance(step, CellSpec):
                run_ids[step.name] = run_cell(step)
                continue
            found[one.key] = step
            break
    return found


def search_results(
    design: StudyDesign, found: Mapping[SearchKey, Found | None]
) -> list[SearchResult]:
    """Return what searches have come to, as plain data; nothing of one whose run has failed."""
    ended = ((one, found.get(one.key)) for one in searches(design))
    return [
        SearchResult(
            question=one.key.question,
            arm=one.key.arm,
            axis=one.search.axis,
            retention=one.search.retention,
            confidence=one.search.confidence,
            value=result.value,
            retained=result.retained,
            trials=result.trials,
            grid=len(one.cells),
            seeds=result.seeds,
        )
        for one, result in ended
        if result is not None
    ]
