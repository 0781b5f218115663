"""Test the 25 instructions at their edges; expected verdicts apply the official rules by hand."""

import random
import re
import time
from typing import Any

import pytest

from sft_lab.evaluation.benchmarks.ifeval.grading import grade
from sft_lab.evaluation.benchmarks.ifeval.instructions import INSTRUCTIONS

Case = tuple[dict[str, Any], str, bool]
LESS, MORE = "less than", "at least"

CASES: dict[str, list[Case]] = {
    "keywords:existence": [
        ({"keywords": ["cat", "dog"]}, "A DOG and a cat.", True),
        ({"keywords": ["cat", "dog"]}, "The category of hotdogs.", True),  # within words
        ({"keywords": ["cat", "dog"]}, "Only a cat.", False),
        ({"keywords": ["c.t"]}, "Only a cut.", True),  # a keyword is a regular expression
    ],
    "keywords:frequency": [
        ({"keyword": "the", "frequency": 3, "relation": MORE}, "The other theory.", True),
        ({"keyword": "the", "frequency": 3, "relation": MORE}, "The other one.", False),
        ({"keyword": "the", "frequency": 3, "relation": LESS}, "The other one.", True),
        ({"keyword": "the", "frequency": 3, "relation": LESS}, "The other theory.", False),
        ({"keyword": " the ", "frequency": 2, "relation": MORE}, "bathe, clothe", True),
        ({"keyword": "ana", "frequency": 2, "relation": MORE}, "banana", False),  # no overlap
        ({"keyword": "the", "frequency": 0, "relation": MORE}, "none", True),
        ({"keyword": "the", "frequency": 0, "relation": LESS}, "none", False),
    ],
    "keywords:forbidden_words": [
        ({"forbidden_words": ["run"]}, "I was running; a rerun.", True),
        ({"forbidden_words": ["run"]}, "RUN!", False),
        ({"forbidden_words": ["run"]}, "re-run", False),  # a hyphen is a boundary
        ({"forbidden_words": ["run"]}, "run_away", True),  # an underscore is not
        ({"forbidden_words": ["walk", "run"]}, "Don't run.", False),
        ({"forbidden_words": ["a|b"]}, "abc", False),  # \ba|b\b: begins with a or ends with b
        ({"forbidden_words": ["a|b"]}, "bcd", True),
    ],
    "keywords:letter_frequency": [
        ({"letter": "t", "let_frequency": 3, "let_relation": MORE}, "Tatty", True),
        ({"letter": "T", "let_frequency": 4, "let_relation": MORE}, "Tatty", False),
        ({"letter": "q", "let_frequency": 1, "let_relation": LESS}, "none", True),
        ({"letter": "q", "let_frequency": 1, "let_relation": LESS}, "IQ", False),
        ({"letter": "#", "let_frequency": 2, "let_relation": MORE}, "#a #b", True),
        ({"letter": "!", "let_frequency": 2, "let_relation": MORE}, "Oh!", False),
    ],
    "language:response_language": [
        ({"language": "de"}, "Der Hund schläft, weil er sehr müde ist.", True),
        ({"language": "en"}, "Der Hund schläft, weil er sehr müde ist.", False),
        ({"language": "hi"}, "मुझे हिंदी में लिखना बहुत पसंद है।", True),
        ({"language": "mr"}, "मुझे हिंदी में लिखना बहुत पसंद है।", False),
        ({"language": "de"}, "12345 67 !!", True),  # unknown language
        ({"language": "de"}, "https://example.com/hello", True),  # addresses are removed
    ],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2, "relation": MORE}, "One. Two!", True),
        ({"num_sentences": 2, "relation": LESS}, "One. Two!", False),
        ({"num_sentences": 2, "relation": LESS}, "Dr. Who met Mr. Bean at 3.30 p.m. sharp", True),
        ({"num_sentences": 2, "relation": LESS}, "One\n\nTwo\n\nThree", True),
        ({"num_sentences": 1, "relation": MORE}, "no full stop", True),
    ],
    "length_constraints:number_words": [
        ({"num_words": 6, "relation": MORE}, "It's well-known: 3.5", True),  # It s well known 3 5
        ({"num_words": 7, "relation": MORE}, "It's well-known: 3.5", False),
        ({"num_words": 1, "relation": LESS}, "... --- ...", True),
        ({"num_words": 2, "relation": LESS}, "snake_case", True),
        ({"num_words": 3, "relation": MORE}, "日本語 と ещё", True),
        # Python does not count Devanagari signs as letters, so they separate the three that are.
        ({"num_words": 3, "relation": MORE}, "हिन्दी", True),
        ({"num_words": 4, "relation": MORE}, "हिन्दी", False),
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, "One\n***\nTwo", True),
        ({"num_paragraphs": 2}, "One***Two", True),
        ({"num_paragraphs": 2}, "***\nOne\n***\nTwo\n***", True),  # dividers at both ends
        ({"num_paragraphs": 2}, "One\n\nTwo", False),
        ({"num_paragraphs": 3}, "One\n***\nTwo", False),
        ({"num_paragraphs": 2}, "One\n***\n\n***\nTwo", False),  # a blank one between
        ({"num_paragraphs": 2}, "One\n******\nTwo", False),  # two dividers, blank between
        ({"num_paragraphs": 2}, "One\n****\nTwo", True),  # the fourth belongs to the text
        ({"num_paragraphs": 2}, "One\n* * *\nTwo", False),
        ({"num_paragraphs": 1}, "One", True),
        ({"num_paragraphs": 0}, "***", True),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (
            _nth := {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
            "A\n\nElm b",
            True,
        ),
        (_nth, "A\n\nELM, b", True),
        (_nth, "A\n\n'\"Elm's b", True),
        (_nth, "A\n\n\"'Elm b", False),  # ' is stripped first, then ": the ' after it ends the word
        (_nth, "A\n\nElm: b", False),  # a colon belongs to the word
        (_nth, "A\n\n**Elm** b", False),
        (_nth, "A\n\nOak elm", False),
        (_nth, "A\n\nElm\n\nC", False),
        (_nth, "A\nElm", False),
        (_nth, "A\n\n\nElm", True),  # the second begins with a line break
        (_nth, "A\n\n\n\nElm", False),  # the second is blank, and the third is not checked
        (_nth, "A\n\nElm\n\n\n\n", True),
        (_nth, "\n\nElm\n\nB", True),  # a blank first: two paragraphs, the second in place is Elm
    ],
    "detectable_content:number_placeholders": [
        ({"num_placeholders": 2}, "[name] lives at [address 1]", True),
        ({"num_placeholders": 2}, "[name] lives", False),
        ({"num_placeholders": 2}, "[]]", False),
        ({"num_placeholders": 2}, "[][]", True),
        ({"num_placeholders": 2}, "[[a]]", False),  # the first closing bracket ends it
        ({"num_placeholders": 1}, "[a\nb]", False),
        ({"num_placeholders": 1}, "- [ ] a task, [a link](b)", True),
    ],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, "Hi\n\nP.S. Bye", True),
        ({"postscript_marker": "P.S."}, "Hi p. s. bye", True),
        ({"postscript_marker": "P.S."}, "Hi\n\nPS: bye", False),
        ({"postscript_marker": "P.S."}, "Hi\n\nP.S bye", False),
        ({"postscript_marker": "P.S."}, "Hi\n\nP.P.S. bye", True),  # its end is one
        ({"postscript_marker": "P.P.S"}, "Hi\n\nP.P.S. bye", True),
        ({"postscript_marker": "P.P.S"}, "Hi\n\np. p. s bye", True),
        ({"postscript_marker": "P.P.S"}, "Hi\n\nP.S. bye", False),
        ({"postscript_marker": "PS:"}, "Hi\n\nps: bye", True),
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 2}, "* a\n* b", True),
        ({"num_bullets": 2}, "  * a\n\t- b", True),
        ({"num_bullets": 2}, "*a*\n-b", True),  # no space needed
        ({"num_bullets": 2}, "* a\n** b\n* c", True),  # not two asterisks
        ({"num_bullets": 2}, "* a\n* b\n* c", False),
        ({"num_bullets": 2}, "* a\n\n---\n\nb", True),  # a rule counts
        ({"num_bullets": 2}, "1. a\n2. b", False),
        ({"num_bullets": 2}, "+ a\n• b", False),
        ({"num_bullets": 1}, "*\na", True),  # a lone asterisk, with the line break
        ({"num_bullets": 0}, "*", True),  # one at the very end
    ],
    "detectable_format:constrained_response": [
        ({}, "My answer is yes.", True),
        ({}, "Well, My answer is maybe. I think", True),
        ({}, "My answer is no", False),
        ({}, "my answer is no.", False),
        ({}, "My answer is: no.", False),
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, "*one* and *two*", True),
        ({"num_highlights": 2}, "*one and two*", False),
        # Single asterisks are matched to the blank ** on each side, so only the double one counts.
        ({"num_highlights": 1}, "**bold**", True),
        ({"num_highlights": 2}, "**bold**", False),
        ({"num_highlights": 1}, "* *", False),
        ({"num_highlights": 1}, "*one\ntwo*", False),
        ({"num_highlights": 1}, "* item\n* item", False),
        ({"num_highlights": 1}, "2 * 3 * 4", True),
    ],
    "detectable_format:multiple_sections": [
        (
            _two := {"section_spliter": "Section", "num_sections": 2},
            "Section 1\na\nSection 2\nb",
            True,
        ),
        (_two, "Section1 a Section\t22 b", True),
        (_two, "Section 1\na\nSection  2\nb", False),  # one space at most
        (_two, "SECTION 1\na\nSECTION 2\nb", False),
        (_two, "Section I\na\nSection II\nb", False),
        (_two, "Section 1 Section 2 Section 3", True),  # more will do
        (_two, "Section 1\na", False),
        ({"section_spliter": " Day ", "num_sections": 1}, "Day 1", True),
    ],
    "detectable_format:json_format": [
        ({}, '{"a": [1, null]}', True),
        ({}, '  ```json\n{"a": 1}\n```\n', True),
        ({}, '```JSON\n{"a": 1}```', True),
        ({}, '```Json{"a": 1}```', True),
        ({}, '```\n{"a": 1}\n```', True),
        ({}, '```jsonc\n{"a": 1}\n```', False),
        ({}, '~~~json\n{"a": 1}\n~~~', False),
        ({}, 'Here: {"a": 1}', False),
        ({}, "{'a': 1}", False),
        ({}, '{"a": 1,}', False),
        ({}, '{"a": "line\nbreak"}', False),
        ({}, "7", True),
        ({}, "NaN", True),
        ({}, "``````", False),
        ({}, "[" * 100_000, False),
    ],
    "detectable_format:title": [
        ({}, "<<Rain>>\nIt rains.", True),
        ({}, "It rains. <<<Rain>>>", True),
        ({}, "<Rain>", False),
        ({}, "<< >>", False),
        ({}, "<<>>", False),
        ({}, "<<Rain\nfall>>", False),
        ({}, "cout << a; cin >> b", True),
    ],
    "combination:two_responses": [
        ({}, "One\n******\nTwo", True),
        ({}, "******\nOne\n******\nTwo\n******", True),
        ({}, "One\n******\n One ", False),
        ({}, "One\n******\n******\nTwo", False),
        ({}, "One ****** Two ****** Three", False),
        ({}, "One", False),
        ({}, "One ***** Two", False),
        ({}, "One ******* Two", True),  # the seventh belongs to the second
    ],
    "combination:repeat_prompt": [
        ({"prompt_to_repeat": "Write a poem.\n"}, "  write a POEM. Roses", True),
        ({"prompt_to_repeat": "Write a poem."}, '"Write a poem." Roses', False),
        ({"prompt_to_repeat": "Write a poem."}, "Write a poem: Roses", False),
    ],
    "startend:end_checker": [
        ({"end_phrase": "Any more?"}, "So. any MORE?\n", True),
        ({"end_phrase": " Any more? "}, 'He said "Any more?"', True),
        ({"end_phrase": "Any more?"}, "Any more? No.", False),
        ({"end_phrase": "Any more?"}, "*Any more?*", False),
        ({"end_phrase": "Any more?"}, "How many more?", True),  # within a word
        ({"end_phrase": 'x"'}, 'x"', False),  # the quote is taken from the text alone
    ],
    "startend:quotation": [
        ({}, ' "a\nb" ', True),
        ({}, '""', True),
        ({}, '"', False),
        ({}, "“a”", False),
        ({}, '"a', False),
        ({}, '"a" he said "b"', True),
    ],
    "change_case:capital_word_frequency": [
        ({"capital_frequency": 3, "capital_relation": MORE}, "A NASA lab, U.S.A.", True),
        ({"capital_frequency": 3, "capital_relation": LESS}, "A NASA lab", True),
        ({"capital_frequency": 2, "capital_relation": LESS}, "STATE-OF-THE-ART", True),
        ({"capital_frequency": 2, "capital_relation": MORE}, "IT'S", True),  # IT and 'S
        ({"capital_frequency": 1, "capital_relation": LESS}, "NASAs 123", True),
    ],
    "change_case:english_capital": [
        ({}, "WE HOPE THAT YOU ARE WELL. THANK YOU FOR THE LETTER.", True),
        ({}, "WE HOPE THAT YOU ARE WELL. THANK YOU FOR THE LETTERs.", False),
        ({}, "DER HUND SCHLÄFT, WEIL ER SEHR MÜDE IST UND NICHT MEHR LAUFEN KANN.", False),
        ({}, "123", False),  # no letter: no capital
    ],
    "change_case:english_lowercase": [
        ({}, "the dog sleeps because it is very tired, and so am i.", True),
        ({}, "the dog sleeps because it is very tired, and so am I.", False),
        ({}, "der hund schläft, weil er sehr müde ist.", False),
        ({}, "123", False),
    ],
    "punctuation:no_comma": [
        ({}, "No; none.", True),
        ({}, "1,000", False),
        ({}, "Arabic\u060c and Chinese\uff0c commas", True),
    ],
}


@pytest.mark.parametrize(
    ("instruction_id", "kwargs", "response", "followed"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_strict_verdict(
    instruction_id: str, kwargs: dict[str, Any], response: str, followed: bool
) -> None:
    row = {"key": 1, "prompt": "", "instruction_id_list": [instruction_id], "kwargs": [kwargs]}
    assert grade(row, response).strict == (followed,)


def test_every_instruction_has_cases() -> None:
    assert set(CASES) == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25


@pytest.mark.parametrize("instruction_id", INSTRUCTIONS)
def test_no_response_takes_time_that_grows_with_its_square(instruction_id: str) -> None:
    kwargs = CASES[instruction_id][0][0]
    parts = ("[", "<", "<<", "*", "***", "-", "\n", " ", "''", '."', ". ", "a", "1", "(", "a@")
    for part in parts:
        response = part * (40_000 // len(part)) + "\n!"
        started = time.process_time()
        INSTRUCTIONS[instruction_id](response, **kwargs)
        assert time.process_time() - started < 1.5, part  # 2 to 10 s, where it did


def test_linear_patterns_match_what_the_official_ones_match() -> None:
    draw = random.Random(0)
    for _ in range(20_000):
        text = "".join(draw.choices("[]*-<>a.\n\n \r\x85", k=draw.randint(1, 14)))
        places = len(re.findall(r"\[.*?\]", text))
        placeholders = INSTRUCTIONS["detectable_content:number_placeholders"]
        assert placeholders(text, num_placeholders=places), text
        assert not placeholders(text, num_placeholders=places + 1), text
        stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
        hyphens = re.findall(r"^\s*-.*$", text, re.MULTILINE)
        bullets = INSTRUCTIONS["detectable_format:number_bullet_lists"]
        assert bullets(text, num_bullets=len(stars) + len(hyphens)), text
        titles = re.findall(r"<<[^\n]+>>", text)
        has_title = any(title.lstrip("<").rstrip(">").strip() for title in titles)
        assert INSTRUCTIONS["detectable_format:title"](text) == has_title, text
