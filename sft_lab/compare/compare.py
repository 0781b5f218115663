"""The command ``compare``: runs found by name, their protocols checked, differences tested."""

from collections.abc import Sequence

from sft_lab.compare.arms import Arm, over_seeds, single_runs
from sft_lab.compare.comparison import Comparison, comparison
from sft_lab.compare.protocols import mismatches, refuse
from sft_lab.tracking import RunStore


def compare(
    store: RunStore,
    names: Sequence[str],
    reference: str | None = None,
    group_seeds: bool = False,
    allow_different_protocols: bool = False,
) -> Comparison:
    """Return the comparison of the runs of the given names.

    Args:
        store: The store that holds them.
        names: Ids, unique beginnings of ids, or names.
        reference: What the others are compared with, one of them or one more; else the first.
        group_seeds: Take runs of one name without ``seed N`` together.
        allow_different_protocols: Compare also what was measured otherwise.

    Raises:
        RequestError: If a name fits no run, more than one, or one that has not trained; if a seed
            is there twice; or if protocols differ and may not.
    """
    find = over_seeds if group_seeds else single_runs
    arms = find(store, names)
    index = 0
    if reference is not None:
        (wanted,) = find(store, [reference])
        ids = {run.result.run_id for run in wanted.runs}
        holding = [n for n, arm in enumerate(arms) if ids <= {r.result.run_id for r in arm.runs}]
        if holding:
            index = holding[0]
        else:
            arms = [wanted, *arms]
    results = [run.result for arm in arms for run in arm.runs]
    first = arms[index].runs[0].result
    found = mismatches(first, [result for result in results if result is not first])
    if not allow_different_protocols:
        refuse(found, run_names(arms), first.name)
    return comparison(arms, index, found)


def run_names(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the names of all runs by id."""
    return {run.result.run_id: run.result.name for arm in arms for run in arm.runs}
