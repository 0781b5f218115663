"""What a study's searches have come to, beside what the whole grid would have cost."""

from collections.abc import Sequence

from sft_lab.study.report.page import Section, Table
from sft_lab.study.study_results import SearchResult


def searches_section(searches: Sequence[SearchResult]) -> Section:
    """Return the part of a report on its searches."""
    rows = [
        [
            f"{found.question} {found.arm}",
            f"{found.axis} = {found.value}" if found.value is not None else "none",
            str(found.trials),
            str(found.grid),
            "; ".join(f"{value}: {verdict}" for value, verdict in found.verdicts.items()),
        ]
        for found in searches
    ]
    table = Table(
        caption="Searches: the smallest value found, and the runs that finding it took.",
        header=("search", "found", "runs needed", "runs of the whole grid", "in order of trial"),
        rows=rows,
    )
    return Section("searches", "Searches", [_sentence(found) for found in searches], tables=[table])


def _sentence(found: SearchResult) -> str:
    limits = " and ".join(f"{100 * limit:g} % of {key}" for key, limit in found.retention.items())
    asked = f"{found.question} {found.arm} looks for the smallest {found.axis} that keeps {limits}"
    cost = f"{found.trials} of the grid's {found.grid} runs"
    sure = f"at {100 * found.confidence:g} % confidence for each value and ability"
    if found.seeds == 1:
        sure += ", over items only: there is one seed, and another may differ"
    if found.value is None:
        return f"{asked}: none was shown to, in {cost}, {sure}."
    return (
        f"{asked}: {found.axis} = {found.value} was shown to, in {cost}, {sure}. A search of "
        "several values is somewhat less sure than each verdict. That smaller ones do not is as "
        "sure as the verdicts below: a value of which nothing was shown counts as one that does "
        "not keep."
    )
