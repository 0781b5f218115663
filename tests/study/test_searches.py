import json
from collections.abc import Callable
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sft_lab.metrics.score import Score
from sft_lab.runs.results import Point
from sft_lab.study import search


def test_only_selection_items_that_every_evaluation_graded_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One item of each evaluation has no rating, a different one each time.
    ratings: dict[str, dict[int, list[float | None]]] = {
        "one": {0: [1, 1, 1, 1], 5: [9, None, 7, 6], 9: [8, 7, None, 5]},
        "two": {0: [1, 1, 1, 1], 5: [4, 3, 2, 1], 9: [3, 2, 1, 9]},
    }

    def point(step: int, found: list[float | None]) -> Point:
        mean = fmean(rating for rating in found if rating is not None)
        score = Score(mean, 1, 10, len(found))
        # Of the reported items another boundary is the best, and all are right at the end.
        reported = Score(10 - step, 1, 10, 1)
        selection = {"mt_bench/mean": score}
        return Point(step, "s", {"mt_bench/mean": reported}, reported="report", selection=selection)

    def artifact_text(run_id: str, path: str) -> str:
        step = int(path.split("/")[1].removeprefix("step_"))
        columns = ["id", "item", "split", "rating", "reason", "completion", "prompt"]
        rows = [
            [f"{n}/1", n, "selection", r, "", "a", "q"] for n, r in enumerate(ratings[run_id][step])
        ]
        rows.append(["4/1", 4, "report", 10, "", "a", "q"])
        return json.dumps({"columns": columns, "data": rows})

    def read_result(store: Any, run_id: str) -> Any:
        points = [point(step, found) for step, found in ratings[run_id].items()]
        benchmarks = {"mt_bench": SimpleNamespace(marks={"mean": "rating"})}
        return SimpleNamespace(
            run_id=run_id, benchmarks=benchmarks, points=points, boundaries=points
        )

    monkeypatch.setattr(search, "read_result", read_result)
    client = SimpleNamespace(get_run=lambda run_id: run_id)

    def artifact(run_id: str, path: str, read: Callable[[str], Any]) -> Any:
        return read(artifact_text(run_id, path))

    store = cast(Any, SimpleNamespace(client=client, artifact=artifact))
    found = search.retained_marks(store, ["one", "two"], {"mt_bench/mean": 0.9})
    assert found == {"mt_bench/mean": ([[9, 6], [4, 1]], [[8, 5], [3, 9]], ["0", "3"])}
