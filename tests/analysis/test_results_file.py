"""A report of results files is that of the store, to the number."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from planted_study import LLAMA_ABILITIES, PlantedStudy, rq1, rq4

from sft_lab.analysis.results_file import read_results, results_text
from sft_lab.errors import RequestError
from sft_lab.report.report import build_report
from sft_lab.report.writing import report_files

pytestmark = pytest.mark.slow


def test_a_report_of_files_by_question_is_that_of_the_store(tmp_path: Path) -> None:
    study = PlantedStudy(abilities=LLAMA_ABILITIES, items=40)
    questions = [rq1(study, (0, 1)), rq4(study, (0, 1))]
    whole = study.results("planted", *questions)
    files = []
    for question in questions:
        files.append(tmp_path / f"{question.name}.json")
        files[-1].write_text(results_text(replace(whole, questions=[question]), study.read))
    results, read, changed = read_results(files)
    ours = report_files(build_report(results, read, changed=changed))
    theirs = report_files(build_report(whole, study.read))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert "forgotten" in ours["items.csv"]
    assert max(file.stat().st_size for file in files) < 200_000


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    study = PlantedStudy(items=4)
    text = results_text(study.results("one", rq1(study, (0,))), study.read)
    one, other, wrong = (tmp_path / f"{name}.json" for name in ("one", "other", "wrong"))
    one.write_text(text)
    with pytest.raises(RequestError, match="'rq1' is in an earlier file already"):
        read_results([one, one])
    content = json.loads(text)
    other.write_text(json.dumps({**content, "abilities": {}}))
    with pytest.raises(RequestError, match="name files of one study"):
        read_results([one, other])
    wrong.write_text("{}")
    with pytest.raises(RequestError, match=r"wrong\.json is no results file of this version"):
        read_results([wrong])
    with pytest.raises(RequestError, match=r"none\.json does not exist"):
        read_results([tmp_path / "none.json"])
