import subprocess
import sys

import langdetect
import pytest

from sft_lab.evaluation.benchmarks.ifeval.language import detect_language, known_languages


@pytest.mark.parametrize("text", ["", "  ", "12.5 %", "https://example.com/a", "☃☃"])
def test_text_without_letters_has_no_language(text: str) -> None:
    assert detect_language(text) is None


def test_latin_letters_are_passed_over_where_another_script_prevails() -> None:
    assert detect_language("Microsoft и Apple выпустили новые телефоны") == "ru"


def test_an_ambiguous_text_has_one_answer_in_every_process() -> None:
    text = "el sol o sol"  # without a seed it is as often Italian as Spanish
    module = "sft_lab.evaluation.benchmarks.ifeval.language"
    program = f"from {module} import detect_language; print(detect_language({text!r}))"
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert {detect_language(text) for _ in range(20)} == {run.stdout.strip()}


def test_the_seed_is_ours_alone() -> None:
    detect_language("It rains all day long.")
    assert langdetect.DetectorFactory.seed is None


def test_languages_go_by_their_codes() -> None:
    assert {"de", "hi", "ur", "zh-cn"} <= known_languages()
    assert "german" not in known_languages()
