"""Find a study by its config or run, write its report, and file it with the run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from sft_lab.analysis.results_file import read_results, results_text
from sft_lab.errors import RequestError
from sft_lab.paths import find_config, make_folder
from sft_lab.report.report import build_report
from sft_lab.report.writing import write_report
from sft_lab.runs.results import ItemAnswer, RunResult, read_answers
from sft_lab.runs.store import STUDY_TAG, RunStore
from sft_lab.study.design import ReportDesign
from sft_lab.study.read_design import read_report_design
from sft_lab.study.record import find_parents, read_study
from sft_lab.study.study import read_study_config

RESULTS = "results.json"
"""File of a report's folder from which the report can be built again, without the store."""


def find_study(store: RunStore, study: str) -> tuple[str, ReportDesign]:
    """Return the id of the MLflow run of a study, and the report that its config asks for.

    Args:
        store: The store that holds it.
        study: A study's config file, of which the newest run is taken, or the run's id, the
            beginning of one, or its name.

    Raises:
        RequestError: If there is no such study.
    """
    if study.endswith((".yaml", ".yml")):
        find_config(study, "--study", "configs/studies/rq1.yaml")
        design, _ = read_study_config([f"--config={study}"])
        parents = find_parents(store, design.name)
        if not parents:
            raise RequestError(
                f"--study {study}: no run of the study {design.name} in {store.tracking_uri}; "
                f"run it first: python -m sft_lab study --config {study}"
            )
        return str(parents[0].info.run_id), design.report
    parents = find_parents(store)
    by_id = [run.info.run_id for run in parents if run.info.run_id.startswith(study)]
    by_name = [run.info.run_id for run in parents if run.data.tags[STUDY_TAG] == study]
    if len(by_id) > 1:
        raise RequestError(f"--study {study} fits {len(by_id)} studies; give more of one id.")
    if not by_id and not by_name:
        known = [(run.info.run_id, run.data.tags[STUDY_TAG]) for run in parents]
        raise store.unknown("study", study, known)
    run_id = str((by_id or by_name)[0])
    return run_id, read_report_design(yaml.safe_load(store.artifact_text(run_id, "study.yaml")))


def make_report(
    store: RunStore,
    study: str,
    out: Path,
    represented: Sequence[str] = (),
    margin: float | None = None,
) -> Path:
    """Write the report of a study, and file it with the study's run.

    Args:
        store: The store that holds the study.
        study: As in ``find_study``.
        out: The folder to write to; files of the same names are replaced.
        represented: Runs whose hidden states are drawn, before and after training.
        margin: The least difference that matters; by default the study's.

    Returns:
        The page.
    """
    run_id, design = find_study(store, study)
    make_folder("--out", out)
    figures = []
    for run in represented:
        # Imported here since most reports load no model.
        from sft_lab.commands.hidden_states import represent
        from sft_lab.report.representation_figure import extra_figure

        figures.append(extra_figure(represent(store, run)))

    def read(run: RunResult, benchmark: str, step: int) -> list[ItemAnswer]:
        return read_answers(store, run.run_id, benchmark, step)

    results = replace(read_study(store, run_id), margin=margin or design.margin)
    report = build_report(results, read, figures, design.sections)
    write_report(report, out)
    (out / RESULTS).write_text(results_text(results, read), encoding="utf-8")
    with TemporaryDirectory() as alone:  # the folder may hold more than the report
        write_report(report, Path(alone))
        store.client.log_artifacts(run_id, alone, "report")
    return out / "report.html"


def make_report_of_files(files: Sequence[Path], out: Path, margin: float | None = None) -> Path:
    """Write the report of one study's results files, without a store, and return its page."""
    results, read, changed = read_results(files)
    make_folder("--out", out)
    results = replace(results, margin=margin or results.margin)
    write_report(build_report(results, read, changed=changed), out)
    return out / "report.html"
