"""Train with a source format and a data order from a file outside the package."""

import json

import pytest
from conftest import write_jsonl
from tiny_lab import Lab

pytestmark = pytest.mark.slow

SEAMS = '''
from sft_lab.data.conversation import Conversation
from sft_lab.data.formats import SourceFormat, text
from sft_lab.training.order import DataOrder, RowRef


class Dialogue(SourceFormat):
    """``lines``: two speakers taking turns."""

    def __init__(self, key: str = "lines") -> None:
        self.key = key

    def conversation(self, row):
        lines = row[self.key].split("|")
        roles = ["user", "assistant"] * len(lines)
        messages = [{"role": r, "content": line} for r, line in zip(roles, lines)]
        return Conversation(tuple(messages))


class OneByOne(DataOrder):
    """Trains one source after the other, in the order of their names."""

    def __init__(self, reverse: bool = False) -> None:
        self.reverse = reverse

    def refs(self, one_pass):
        names = sorted(one_pass.rows, reverse=self.reverse)
        return [RowRef(name, index) for name in names for index in one_pass.rows[name]]
'''
FORMAT = "--corpus.sources.talk.format={class_path: data_seams.Dialogue, init_args: {key: said}}"
TALK = ("--corpus.sources.talk.path=talk.jsonl", "--data.stages.second.mixture.talk=1")
INSPECT = ("inspect", "--config=tiny.yaml", "--json", "-n0")


@pytest.fixture
def seams(lab: Lab) -> Lab:
    lab.write("data_seams.py", SEAMS)
    write_jsonl(lab.folder / "talk.jsonl", [{"said": f"Say {n}|{n}"} for n in range(12)])
    return lab


def test_a_source_format_is_a_class(seams: Lab) -> None:
    for _ in range(2):  # read from the file, then from the cache
        outcome = seams(*INSPECT, *TALK, FORMAT)
        assert outcome.code == 0, outcome.err
        plan = json.loads(outcome.out)["stages"]["second"]["mixture"]["talk"]
        assert plan["rows"] == 12 - 4
    refused = seams(*INSPECT, *TALK, FORMAT.replace("said", "lines"))
    assert refused.code == 2
    assert "corpus.sources.talk: 12 of 12 rows cannot be used, e.g. talk.jsonl, line 1: " in (
        refused.err
    )
    assert "missing key 'lines'" in refused.err


def test_a_changed_source_format_invalidates_the_cache(seams: Lab) -> None:
    assert seams(*INSPECT, *TALK, FORMAT).code == 0
    seams.write("other.py", SEAMS.replace('split("|")', 'split("|")[:1]'))
    refused = seams(*INSPECT, *TALK, FORMAT.replace("data_seams.", "other."))
    assert "talk.jsonl, line 1: no user turn followed by an assistant turn" in refused.err
    seams.write("third.py", SEAMS.replace("row[self.key]", "row[self.key][0][1]"))
    refused = seams(*INSPECT, *TALK, FORMAT.replace("data_seams.", "third."))
    assert refused.code == 2
    assert "talk.jsonl, line 1: format Dialogue failed on this row: IndexError" in refused.err


def test_an_unknown_format_is_named(seams: Lab) -> None:
    refused = seams(*INSPECT, *TALK, "--corpus.sources.talk.format=dialog")
    assert refused.code == 2
    assert "corpus.sources" in refused.err
    assert "or a class path, got dialog." in refused.err


def test_a_data_order_is_a_class(seams: Lab) -> None:
    order = "--data.order={class_path: data_seams.OneByOne, init_args: {reverse: true}}"
    outcome = seams.fit(order, "--data.stages.second.max_steps=3", "--trainer.log_every_n_steps=1")
    assert outcome.code == 0, outcome.err
    table = seams.artifact("windows/second.tsv").read_text().splitlines()[1:]
    sources = [tuple(line.split("\t")[:3]) for line in table]
    # 5 rows of math come first, then general, in steps of 4 rows.
    assert sources == [
        ("1", "math", "4"),
        ("2", "general", "3"),
        ("2", "math", "1"),
        ("3", "general", "4"),
    ]
    assert 6 in seams.points("train_loss/math")
    assert 8 not in seams.points("train_loss/math")
