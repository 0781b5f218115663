"""Rows as public data sets have them: what carries meaning is read, the rest is counted."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import byte_tokenizer, write_jsonl
from hub_cache import HubCache

from sft_lab.data.contamination import ItemIndex
from sft_lab.data.conversation import RowError
from sft_lab.data.intake import Sample, samples
from sft_lab.data.intake_report import IntakeReport, unused_line
from sft_lab.data.rendering import Renderer
from sft_lab.data.sources import Source
from sft_lab.data.tokenized_row import IGNORED
from sft_lab.errors import RequestError

TEMPLATE = (
    "{{ tools | tojson + '<end>' if tools else '' }}"
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}"
    "{{ '(' + m.reasoning_content + ')' if m.reasoning_content else '' }}{{ m['content'] }}"
    "{{ m.tool_calls | tojson if m.tool_calls else '' }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WEATHER = {"name": "weather", "parameters": {}}
OFFERED = '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]<end>'
CALLING = {"name": "weather", "arguments": {"city": "Bern"}}
CALL = '[{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}]'
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(byte_tokenizer(chat_template=TEMPLATE), None)


def intake(path: Path, **settings: Any) -> tuple[list[Sample], IntakeReport]:
    report = IntakeReport()
    source = Source(str(path), **settings)
    found = samples("math", source, ItemIndex({}), drop_contaminated=False, report=report)
    return list(found), report


def calling(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}


QUESTION = "<user>q<end><assistant>a<end>"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {
                "instruction": "q",
                "output": "a",
                "system": "s",
                "history": [["q0", "a0"], ["q1", "a1"]],
            },
            "<system>s<end><user>q0<end><assistant>a0<end><user>q1<end><assistant>a1<end>"
            + QUESTION,
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": json.dumps(CALLING)},
                    {"from": "observation", "value": '{"c": 9}'},
                    {"from": "gpt", "value": "9"},
                ],
                "system": "s",
                "tools": json.dumps([WEATHER]),
            },
            f"{OFFERED}<system>s<end><user>q<end><assistant>{CALL}"
            '<end><tool>{"c": 9}<end><assistant>9<end>',
        ),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": None,
                        "function_call": {"name": "weather", "arguments": '{"city": "Bern"}'},
                    },
                    {"role": "function", "name": "weather", "content": "9"},
                    ANSWER,
                ],
                "functions": [WEATHER],
            },
            OFFERED + f"<user>q<end><assistant>{CALL}<end><tool>9<end><assistant>a<end>",
        ),
        (
            {"messages": [USER, {**ANSWER, "reasoning_content": "why"}]},
            "<user>q<end><assistant>(why)a<end>",
        ),
        ({"system": "s", "messages": [USER, ANSWER]}, "<system>s<end>" + QUESTION),
        (
            {"system": "s", "messages": [{"role": "system", "content": "t"}, USER, ANSWER]},
            "<system>s\n\nt<end>" + QUESTION,
        ),
        (
            {"system": "s", "messages": [{"role": "system", "content": "s"}, USER, ANSWER]},
            "<system>s<end>" + QUESTION,
        ),
        ({"system": "s", "prompt": "q", "completion": "a"}, "<system>s<end>" + QUESTION),
        (
            {"messages": [USER, calling(""), {"role": "tool", "content": "9"}, ANSWER]},
            '<user>q<end><assistant>[{"function": {"name": "weather", "arguments": {}}}]<end>'
            "<tool>9<end><assistant>a<end>",
        ),
        ({"messages": json.dumps([USER, ANSWER])}, QUESTION),
        ({"conversations": [USER, ANSWER]}, QUESTION),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, QUESTION),
        ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, QUESTION),
        (
            {
                "messages": [
                    {**USER, "content": [{"type": "text", "text": "q"}]},
                    {**ANSWER, "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
                ]
            },
            "<user>q<end><assistant>a\nb<end>",
        ),
        ({"system_prompt": "s", "question": "q", "response": "a"}, "<system>s<end>" + QUESTION),
        ({"instruction": "q", "context": "", "response": "a"}, QUESTION),
        (
            {"instruction": "q", "context": "c", "response": "a"},
            "<user>q\n\nc<end><assistant>a<end>",
        ),
        ({"prompt": [USER], "completion": [ANSWER]}, QUESTION),
        ({"prompt": [USER], "completion": "a"}, QUESTION),
        ({"messages": None, "instruction": "q", "output": "a"}, QUESTION),
    ],
)
def test_what_a_row_says_reaches_the_template(
    tmp_path: Path, renderer: Renderer, row: dict[str, Any], text: str
) -> None:
    [sample], report = intake(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert renderer.text(sample.conversation, add_generation_prompt=False) == text
    assert (report.dropped, report.unused_keys) == ({}, {})
    assert renderer.row(sample.conversation).num_target_tokens


def learnt(renderer: Renderer, sample: Sample) -> str:
    row = renderer.row(sample.conversation)
    return str(renderer.tokenizer.decode([label for label in row.labels if label != IGNORED]))


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "content": "b"}]}, "b<end>"),
        ({"messages": [USER, {**ANSWER, "weight": 1}, USER, {**ANSWER, "weight": 0}]}, "a<end>"),
        ({"prompt": [USER, ANSWER, USER], "completion": [{**ANSWER, "content": "b"}]}, "b<end>"),
        (
            {"instruction": "q", "output": "b", "history": [["q0", "a0"]]},
            "a0<end>b<end>",  # as in LLaMA-Factory, which defined the key
        ),
    ],
)
def test_only_answers_of_weight_1_are_learnt(
    tmp_path: Path, renderer: Renderer, row: dict[str, Any], trained: str
) -> None:
    [sample], _ = intake(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert learnt(renderer, sample) == trained


def test_a_row_without_anything_to_learn_is_dropped(tmp_path: Path, renderer: Renderer) -> None:
    rows = [{"messages": [USER, {**ANSWER, "weight": 0}]}]
    [sample], _ = intake(write_jsonl(tmp_path / "rows.jsonl", rows))
    [row] = renderer.rows([sample.conversation])
    assert str(row) == "every answer has weight 0"


def test_a_cut_row_ends_with_an_answer_that_is_learnt(renderer: Renderer, tmp_path: Path) -> None:
    turns = [USER, ANSWER, USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "content": "b" * 99}]
    [sample], _ = intake(write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}]))
    row = renderer.row(sample.conversation, 60, "cut")
    assert row.cut
    assert renderer.tokenizer.decode(row.input_ids) == QUESTION


def test_reasoning_that_the_template_leaves_out_is_refused(tmp_path: Path) -> None:
    rows = [{"messages": [USER, {**ANSWER, "reasoning_content": "why"}]}]
    [sample], _ = intake(write_jsonl(tmp_path / "rows.jsonl", rows))
    with pytest.raises(RowError, match=r"corpus\.template: alpaca leaves the reasoning of a c"):
        Renderer(byte_tokenizer(), "alpaca").row(sample.conversation)


def test_keys_that_are_not_read_are_counted(tmp_path: Path) -> None:
    turns = [USER, {**ANSWER, "train": False, "name": None}]
    rows = [
        {"messages": turns, "id": 7, "score": 1, "empty": "", "none": None},
        {"messages": turns, "id": 8, "score": 2},
        {"messages": [USER, ANSWER], "id": 9, "score": 3},
    ]
    _, report = intake(write_jsonl(tmp_path / "rows.jsonl", rows), where="score < 3")
    assert report.unused_keys == {"messages[].train": 2, "id": 2}
    assert unused_line(report.unused_keys) in (
        "keys not used: id (2 rows), messages[].train (2 rows)",
        "keys not used: messages[].train (2 rows), id (2 rows)",
    )
    assert IntakeReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_keys_of_their_own_in_every_row_do_not_flood_the_report(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", f"k{n}" * 50: 1} for n in range(1100)]
    _, report = intake(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert len(report.unused_keys) == 1001
    assert report.unused_keys["(other keys)"] == 100
    assert len(report.lines[-1]) < 2000
    assert unused_line(report.unused_keys).endswith(", and 981 more")


SCHEMAS = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}}},
    "add": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}
ARGUMENTS: dict[str, Any] = {"weather": {"city": "Bern"}, "add": {"a": 1}}
CALLED = [
    {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": n, "arguments": ARGUMENTS[n]}}
                ],
            },
            {"role": "tool", "content": '{"found": null}'},
            ANSWER,
        ],
        "tools": [{"type": "function", "function": {"name": n, "parameters": SCHEMAS[n]}}],
        "meta": {n: 1},
    }
    for n in ("weather", "add")
]
CALLED.append({"messages": json.dumps([USER, calling({"day": None}), *CALLED[0]["messages"][2:]])})


def test_the_same_rows_from_json_parquet_and_the_hub_train_alike(
    tmp_path: Path, renderer: Renderer, hub_cache: HubCache
) -> None:
    structs, [string] = CALLED[:2], CALLED[2:]  # a column has one type
    for number, rows in enumerate((structs, [string])):
        lines = write_jsonl(tmp_path / f"{number}.jsonl", rows)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
        hub_cache.add_rows("some/rows", rows)
        expected, _ = intake(lines)
        for path in (tmp_path / f"{number}.parquet", Path("some/rows")):
            found, report = intake(path)
            assert [s.conversation for s in found] == [s.conversation for s in expected]
            assert [s.id for s in found] == [s.id for s in expected]
            assert not report.dropped
            for sample, other in zip(found, expected, strict=True):
                row = renderer.row(sample.conversation)
                assert row == renderer.row(other.conversation)
                text = renderer.tokenizer.decode(row.input_ids)
                assert '"found": null' in text  # a text is never changed
                assert ('"day": null' in text) == (number == 1)


def test_filters_see_the_nulls_that_a_table_holds(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CALLED[:2]), tmp_path / "rows.parquet")
    found, report = intake(tmp_path / "rows.parquet", where="meta.add is none")
    assert [sample.place for sample in found] == ["row 1"]
    assert not report.unused_keys
    with pytest.raises(RequestError, match=r"row 1: where .*mta"):
        intake(tmp_path / "rows.parquet", where="mta is not none")


def test_maps_are_objects(tmp_path: Path) -> None:
    kind = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    turns = [[("role", "user"), ("content", "q")], [("role", "assistant"), ("content", "a")]]
    table = pyarrow.table({"messages": pyarrow.array([turns], type=kind)})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    [sample], _ = intake(tmp_path / "rows.parquet")
    assert sample.conversation.messages == (USER, ANSWER)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, calling({"t": "say <end> now"}), {"role": "tool", "content": ""}]},
        {"messages": [USER, calling({"<end>": 1}), {"role": "tool", "content": ""}]},
        {"messages": [{**USER, "name": "<end>"}]},
        {"messages": [USER], "tools": [{**WEATHER, "description": "<end>"}]},
        {"messages": [USER], "functions": [{"name": "<end>"}]},
        {"messages": [USER, {**ANSWER, "reasoning_content": "<end>"}, USER]},
        {"system": "<end>", "messages": [USER]},
    ],
)
def test_a_special_token_anywhere_in_a_row_drops_it(
    tmp_path: Path, renderer: Renderer, row: dict[str, Any]
) -> None:
    row = {**row, "messages": [*row["messages"], ANSWER]}
    [sample], _ = intake(write_jsonl(tmp_path / "rows.jsonl", [row]))
    [rendered] = renderer.rows([sample.conversation])
    assert str(rendered) == "a text with the special token <end>"


def test_what_calls_and_reasoning_say_is_text_of_a_row(tmp_path: Path) -> None:
    turns = [USER, calling({"code": "import os"}), {"role": "tool", "content": "9"}]
    reasoned = [USER, {**ANSWER, "reasoning_content": "import os"}]
    rows = [{"messages": [*turns, ANSWER]}, {"messages": reasoned}, {"messages": [USER, ANSWER]}]
    found, report = intake(write_jsonl(tmp_path / "rows.jsonl", rows), exclude=["import os"])
    assert [sample.place for sample in found] == ["line 3"]
    assert report.dropped == {"matches exclude 'import os'": 2}
    found, _ = intake(tmp_path / "rows.jsonl", exclude=["weather|code|function"])
    assert len(found) == 3  # names and keys are not


def test_rows_under_data_are_read(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "output": "a"} for n in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps({"version": "1", "data": rows}))
    assert len(intake(tmp_path / "rows.json")[0]) == 3


def shards(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        table = pyarrow.Table.from_pylist([{"prompt": name, "completion": "a"}])
        pyarrow.parquet.write_table(table, folder / name)
    return folder


def places(path: Path) -> list[tuple[str, str]]:
    found, _ = intake(path)
    return [(sample.place, sample.conversation.messages[0]["content"]) for sample in found]


def test_shards_are_read_by_folder_and_by_pattern(tmp_path: Path) -> None:
    names = [f"train-0000{n}-of-00002.parquet" for n in range(2)]
    both = [(f"{name}, row 1", name) for name in names]
    folder = shards(tmp_path / "rows", *reversed(names))
    (folder / "README.md").touch()
    assert places(folder) == both
    shards(tmp_path / "more", *names, "test-00000-of-00001.parquet")
    assert places(tmp_path / "more" / "train*.parquet") == both
    assert places(tmp_path / "more" / "train-00001*") == [("row 1", names[1])]


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        ([], "", r"rows is a folder without files that end in \.json"),
        (["a.parquet", "b.parquet"], "", r"parts of one data set: a\.parquet, b\.parquet\. Name"),
        (["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"], "", "of one data set"),
        (["train-00000-of-00003.parquet"], "", r"holds 1 of the 3 parts of train"),
        (["a.parquet"], "*.json", r"no file that ends in .* matches .*\*\.json"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, names: list[str], path: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        intake(shards(tmp_path / "rows", *names) / path)


def test_a_folder_of_save_to_disk_names_the_way_out(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"prompt": "q", "completion": "a"}]).save_to_disk(tmp_path / "rows")
    with pytest.raises(RequestError, match=r"load_from_disk\(.*rows'\)\.to_parquet\("):
        intake(tmp_path / "rows")


def test_a_split_of_a_file_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": "a"}])
    with pytest.raises(RequestError, match=r"math\.split: files have none, got 'test'"):
        intake(path, split="test")
    with pytest.raises(RequestError, match=r"math\.data_files: files have none, got 'a\.jsonl'"):
        intake(tmp_path, data_files="a.jsonl")
