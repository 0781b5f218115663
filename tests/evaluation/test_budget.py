from typing import Any

import pytest

from sft_lab.errors import RequestError
from sft_lab.evaluation.budget import Pace, budget_share, guarded_evaluations, items_between


@pytest.mark.parametrize(
    ("given", "share"), [("10%", 0.1), ("0.25", 0.25), (0.5, 0.5), (None, None)]
)
def test_a_budget_is_a_share_or_a_percentage(given: Any, share: float | None) -> None:
    assert budget_share(given) == share


@pytest.mark.parametrize("given", ["0%", "100%", 1, 0, -0.1, "ten", "10 %%", "nan"])
def test_other_budgets_are_refused(given: Any) -> None:
    with pytest.raises(RequestError, match=r"evaluation\.budget must be .*, got"):
        budget_share(given)


def test_what_full_evaluations_leave_is_shared_by_the_others() -> None:
    # 1,000 steps of 0.9 s; at 10 % evaluations have 100 s. Three full ones of 20 s leave 40 s for
    # four others, 10 s each: half of the items.
    pace = Pace(evaluation_s=20, step_s=0.9, num_steps=1000, num_full=3, num_between=4)
    assert items_between({"math": 200, "code": 81}, 0.1, pace) == {"math": 100, "code": 40}


def test_selection_items_of_a_guard_come_before_the_others() -> None:
    # 100 s again: three full ones of 20 s, and twice all 100 selection items of 400, 10 s, leave
    # 30 s for four others, 7.5 s each: three quarters of the 200 reported items, which take 10 s.
    guarded = guarded_evaluations({"math": 200, "code": 200}, {"math": 100}, num_guarded=2)
    pace = Pace(20, 0.9, 1000, 3, 4, report_share=0.5, guarded=guarded)
    assert items_between({"math": 100, "code": 100}, 0.1, pace) == {"math": 75, "code": 75}


def test_there_are_no_more_items_than_all_and_no_fewer_than_some() -> None:
    slow = Pace(evaluation_s=1, step_s=9, num_steps=1000, num_full=2, num_between=2)
    assert items_between({"math": 200}, 0.1, slow) == {"math": 200}
    fast = Pace(evaluation_s=100, step_s=0.01, num_steps=100, num_full=2, num_between=2)
    assert items_between({"math": 200, "few": 5}, 0.1, fast) == {"math": 16, "few": 5}
