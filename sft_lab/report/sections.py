"""The sections that every report has."""

from collections.abc import Sequence
from functools import partial

from typing_extensions import override

from sft_lab.analysis.family import LEVEL
from sft_lab.analysis.study_results import Question, SearchResult
from sft_lab.report.changed_items import changed_tables
from sft_lab.report.context import Context
from sft_lab.report.departures import departures_table
from sft_lab.report.judging import margin_text
from sft_lab.report.page import Figure, Panel, Section, Table
from sft_lab.report.questions import question_section
from sft_lab.report.section import ReportSection
from sft_lab.report.tables import protocol_table
from sft_lab.terminal import counted


class QuestionSection(ReportSection):
    """A question of the study, shown by its design."""

    def __init__(self, question: Question) -> None:
        self.question = question

    @override
    def build(self, context: Context) -> Section:
        return question_section(self.question, context)


class Searches(ReportSection):
    """The results of the study's searches, and the runs they took."""

    @override
    def build(self, context: Context) -> Section | None:
        searches = context.results.searches
        if not searches:
            return None
        table = Table(
            caption="Searches: the smallest value found, and the runs that finding it took.",
            header=("search", "found", "runs needed", "runs of the whole grid", "trials in order"),
            rows=[
                [
                    f"{found.question} {found.arm}",
                    f"{found.axis} = {found.value}" if found.value is not None else "none",
                    str(found.trials),
                    str(found.grid),
                    "; ".join(f"{value}: {trial}" for value, trial in found.retained.items()),
                ]
                for found in searches
            ],
        )
        sentences = [_search_sentence(found) for found in searches]
        return Section("searches", "Searches", sentences, tables=[table])


class ForgottenItems(ReportSection):
    """A few forgotten and gained items with their answers, of the run that forgot most."""

    @override
    def build(self, context: Context) -> Section | None:
        if not context.changed:
            return None
        return Section(
            "items",
            "Forgotten and gained items",
            ["All of them, in full, are in items.csv."],
            tables=changed_tables(context.changed),
        )


class Representations(ReportSection):
    """Drawings of hidden states.

    Args:
        figures: Title, ``<svg>`` element and caption of each; an empty element is named only.
    """

    def __init__(self, figures: Sequence[tuple[str, str, str]]) -> None:
        self.figures = figures

    @override
    def build(self, context: Context) -> Section | None:
        if not self.figures:
            return None
        figures = [
            Figure(title, caption, [Panel(f"representation-{number}", partial(str, svg), title)])
            for number, (title, svg, caption) in enumerate(self.figures)
            if svg
        ]
        left_out = [title for title, svg, _ in self.figures if not svg]
        text = []
        if left_out:
            text = [
                "Left out, because a linear probe names the source of every query before training "
                f"and after: {'; '.join(left_out)}."
            ]
        return Section("representations", "Hidden states before and after", text, figures=figures)


class Method(ReportSection):
    """The protocols of measurement and the statistical tests."""

    @override
    def build(self, context: Context) -> Section:
        family = context.measured.family
        text = [
            "Scores are means over seeds and report items: the other part of a benchmark that was "
            "split only chooses. Their intervals take both as drawn at random; "
            "of one seed they cover items only, by Wilson's method or a bootstrap.",
            "Differences are tested on the same items: over several seeds by Student's t with "
            "crossed random effects of seeds and items, seed by seed if both sides are the same "
            "runs at two times; of one seed by McNemar's exact test, or a paired bootstrap of "
            "ratings. Items of one cluster are taken together. Intervals of differences are at "
            f"95 % each. p values are corrected by Holm's method over all {family.size()} tests of "
            "this report, each counted once; a difference is shown if the corrected p is below "
            f"{LEVEL:g}.",
            "That there is no effect, or no loss, needs a test of its own against the margin: two "
            f"one-sided tests, or one, corrected over all {family.size('margin')} of them. A "
            "finding names the difference that its test shows in 80 % of cases: (t at 1 - a/2 plus "
            "t at 0.8) times the standard error, where a is 5 % over the number of tests that were "
            "not shown.",
            margin_text(context.measured.margin),
            "The verdict is the first that applies: not tested (nothing to compare, never learned, "
            "or at the score of guessing), not controlled (the claim is about mixing or replay, "
            "and the study has no control for it), one seed only, then supported, not supported or "
            "inconclusive. A claim with a control is judged by the comparison with the control "
            "too. Runs of equal cells in other questions add their seeds.",
            "An item is forgotten if it was right at the best earlier stage end and is wrong at "
            "the end of training, and gained if the reverse is true.",
            "MT-Bench ratings stay on their scale of 1 to 10 and are never averaged with shares.",
        ]
        table = protocol_table(context.results, list(context.abilities))
        title = "How it was measured and tested"
        paper = departures_table(context.departures)
        return Section("method", title, text, tables=[t for t in (table, paper) if t.rows])


def _search_sentence(found: SearchResult) -> str:
    limits = " and ".join(f"{100 * limit:g} % of {key}" for key, limit in found.retention.items())
    asked = (
        f"{found.question} {found.arm} searches for the smallest {found.axis} that keeps {limits}"
    )
    cost = f"{found.trials} of the grid's {counted(found.grid, 'run')}"
    sure = f"at {100 * found.confidence:g} % confidence for each value and ability"
    if found.seeds == 1:
        sure += ", over items only: there is one seed, and another may differ"
    if found.value is None:
        return f"{asked}: no value was shown to, in {cost}, {sure}."
    return (
        f"{asked}: {found.axis} = {found.value} was shown to, in {cost}, {sure}. A search over "
        "several values is somewhat less sure than each of its trials. That smaller values do not "
        "keep them is as sure as the trials below: a value for which nothing was shown counts as "
        "not keeping them."
    )
