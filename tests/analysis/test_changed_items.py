from dataclasses import replace

from compared_runs import ENTRY, measured

from sft_lab.analysis.changed_items import changed_items


def test_forgotten_and_regained_items_with_their_answers() -> None:
    #  items:   kept, forgotten, regained, gained, never, ungraded at the end
    run = measured(
        "a", [[1, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 1], [1, 0, 1, 1, 0, None]]
    )
    forgotten, regained = changed_items(run.result, "gsm8k", run.outcomes["gsm8k"])
    assert (forgotten.id, forgotten.kind, forgotten.before_step) == ("i1", "forgotten", 20)
    assert (forgotten.prompt, forgotten.before, forgotten.after) == ("q i1", "i1 is 1", "i1 is 0")
    assert (regained.id, regained.kind, regained.before_step) == ("i2", "regained", 20)
    assert (regained.before, regained.after) == ("i2 is 0", "i2 is 1")


def test_ratings_and_unfinished_runs_have_no_forgotten_items() -> None:
    rated = measured("a", [[1, 9], [0, 8]], entry=replace(ENTRY, scale=(1, 10)))
    assert changed_items(rated.result, "gsm8k", rated.outcomes["gsm8k"]) == ()
    stopped = measured("a", [[1, 1], [0, 0]], stages=3)
    assert changed_items(stopped.result, "gsm8k", stopped.outcomes["gsm8k"]) == ()


def test_shares_of_samples_are_neither_right_nor_wrong() -> None:
    run = measured("a", [[1, 0.75], [0.5, 0]])
    assert changed_items(run.result, "gsm8k", run.outcomes["gsm8k"]) == ()
