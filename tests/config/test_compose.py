from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from sft_lab.config.compose import Composed
from sft_lab.config.identity import changed_keys, check_resumable, digest, identity
from sft_lab.errors import RequestError

Compose = Callable[..., Composed]

DMT = """
# two stages
trainer: shared/trainer.yaml
data:
  k: 1/16
  stages:
    specialize: {mixture: {math: 1, code: 1}, epochs: 1, lr: 2e-3}
    generalize: {mixture: {general: 1, math: "${data.k}", code: "${data.k}"}, lr: 1e-3}
"""


@pytest.fixture
def compose(tmp_path: Path) -> Compose:
    """Merge file contents in order, then overrides; the files are 0.yaml, 1.yaml and so on."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "trainer.yaml").write_text("precision: 32-true\nlogger:\n  name: x\n")

    def merge(*contents: str, **overrides: str) -> Composed:
        composed = Composed()
        for number, content in enumerate(contents):
            file = tmp_path / f"{number}.yaml"
            file.write_text(content, encoding="utf-8")
            composed.merge_file(str(file))
        for key, value in overrides.items():
            composed.override(key, value)
        return composed

    return merge


def mixture(composed: Composed, stage: str = "generalize") -> Any:
    return composed.resolved()["data"]["stages"][stage]["mixture"]


def test_a_second_file_changes_only_what_it_names(compose: Compose) -> None:
    later = "data: {stages: {generalize: {mixture: {math: 1/4}}}}"
    composed = compose(DMT, later)
    assert mixture(composed) == {"general": 1, "math": "1/4", "code": "1/16"}
    assert composed.resolved()["data"]["stages"]["specialize"]["lr"] == 2e-3


@pytest.mark.parametrize("written", ["1/4", '"1/4"', " 1/4 "])
def test_an_override_of_one_share_leaves_the_others(compose: Compose, written: str) -> None:
    composed = compose(DMT, **{"data.stages.generalize.mixture.math": written})
    assert mixture(composed) == {"general": 1, "math": "1/4", "code": "1/16"}
    assert mixture(composed, "specialize") == {"math": 1, "code": 1}


def test_references_follow_an_override(compose: Compose) -> None:
    assert mixture(compose(DMT)) == {"general": 1, "math": "1/16", "code": "1/16"}
    changed = compose(DMT, **{"data.k": "1/64"})
    assert mixture(changed) == {"general": 1, "math": "1/64", "code": "1/64"}
    later = compose(DMT, "data.k: 1e-1")  # a dotted key in a file
    assert mixture(later) == {"general": 1, "math": 0.1, "code": 0.1}
    referring = compose(DMT, **{"data.stages.specialize.mixture.code": "${data.k}"})
    assert mixture(referring, "specialize") == {"math": 1, "code": "1/16"}


def test_a_share_of_another_kind_replaces_the_first(compose: Compose) -> None:
    rows = "data: {k: {rows: 500}}"
    for composed in (
        compose(DMT, rows, "data: {k: {tokens: 9}}"),
        compose(DMT, rows, **{"data.k": "{tokens: 9}"}),
    ):
        assert composed.resolved()["data"]["k"] == {"tokens": 9}
    assert compose(DMT, rows).resolved()["data"]["k"] == {"rows": 500}
    assert compose(DMT, rows, **{"data.k.rows": "7"}).resolved()["data"]["k"] == {"rows": 7}


def test_another_class_does_not_inherit_arguments(compose: Compose) -> None:
    first = "logger: {class_path: a.B, init_args: {x: 1, y: 2}}"
    assert compose(first, "logger: {init_args: {x: 3}}").resolved()["logger"] == {
        "class_path": "a.B",
        "init_args": {"x": 3, "y": 2},
    }
    assert compose(first, "logger: {class_path: a.C}").resolved()["logger"] == {"class_path": "a.C"}


def test_a_group_may_be_a_file_relative_to_the_one_that_names_it(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "shared")  # wherever the command runs
    composed = compose(DMT, "trainer: {precision: bf16-mixed}", **{"trainer.max_steps": "3"})
    assert composed.resolved()["trainer"] == {
        "precision": "bf16-mixed",
        "logger": {"name": "x"},
        "max_steps": 3,
    }
    # On the command line it is relative to the folder the command runs in.
    assert compose(trainer="trainer.yaml").resolved()["trainer"]["precision"] == "32-true"


def test_a_group_may_be_several_files_and_values_the_later_ones_winning(
    compose: Compose, tmp_path: Path
) -> None:
    (tmp_path / "fast.yaml").write_text("precision: bf16-mixed\n")
    composed = compose("trainer: [shared/trainer.yaml, fast.yaml, {max_steps: 3}]")
    assert composed.resolved()["trainer"] == {
        "precision": "bf16-mixed",
        "logger": {"name": "x"},
        "max_steps": 3,
    }
    assert composed.origin("trainer.precision") == f"{tmp_path / 'fast.yaml'}, line 1: "


def test_lists_are_replaced_whole_and_overridden_by_index(compose: Compose) -> None:
    first = "trainer: {callbacks: [{name: a, n: 1}, {name: b}]}"
    assert compose(first, "trainer: {callbacks: [{name: c}]}").resolved()["trainer"] == {
        "callbacks": [{"name": "c"}]
    }
    changed = compose(first, **{"trainer.callbacks.0.n": "2"}).resolved()["trainer"]["callbacks"]
    assert changed == [{"name": "a", "n": 2}, {"name": "b"}]
    with pytest.raises(
        RequestError, match=r"--trainer\.callbacks\.5\.n: .* cannot be set: list in"
    ):
        compose(first, **{"trainer.callbacks.5.n": "2"})


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1/16", "1/16"),
        ("1e-1", 0.1),
        ("1e-3", 1e-3),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("[1, a]", [1, "a"]),
        ("sqlite:///mlruns/mlflow.db", "sqlite:///mlruns/mlflow.db"),
    ],
)
def test_values_read_alike_in_files_and_on_the_command_line(
    compose: Compose, written: str, value: Any
) -> None:
    assert compose(f"data: {{}}\nx:\n  y: {written}\n").resolved()["x"]["y"] == value
    assert compose(**{"x.y": written}).resolved()["x"]["y"] == value


def test_files_of_other_editors_are_read(compose: Compose) -> None:
    assert compose("\ufeffa: 1\r\nb: 2\r\n").resolved() == {"a": 1, "b": 2}
    assert compose("", "# nothing yet\n").resolved() == {}
    assert compose("a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\n").resolved()["c"] == {"b": 1, "d": 2}
    assert compose("x: &x {a: 1}\n<<: *x\n").resolved() == {"x": {"a": 1}, "a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", r"0\.yaml, line 1: not YAML: expected ',' or '\]'"),
        ("a: 1\nb:\n\tc: 2", r"0\.yaml, line 3: not YAML: found character '\\t'"),
        ("a: 1\nb: 2\na: 3", r"0\.yaml, line 3: not YAML: found duplicate key a"),
        ("a: !!python/name:os.system ''", r"line 1: not YAML: could not determine a constructor"),
        ("a: " + "9" * 5000, r"0\.yaml: not YAML: Exceeds the limit"),
        ("a: " + "[" * 2000 + "]" * 2000, r"0\.yaml: not YAML: maximum recursion depth"),
        ("a: " + "{b: " * 90 + "1" + "}" * 90, r"0\.yaml: not YAML: maximum recursion depth"),
        ("a: &a [*a]", r"0\.yaml, line 1: not YAML: YAML recursive aliases"),
        ("- a", r"0\.yaml: a config holds keys and values, got '- a'"),
        ("just text", r"0\.yaml: a config holds keys and values, got 'just text'"),
        ("a: 1\ntrainer: no.yaml", r"0\.yaml, line 2: trainer refers to no\.yaml, but "),
    ],
)
def test_an_error_in_a_file_names_file_and_line(
    compose: Compose, content: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        compose(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${data.kk}", r"0\.yaml, line 3: data\.j: Interpolation key 'data\.kk' not found"),
        ("${oc.env:SFT_LAB_NOPE}", r"line 3: data\.j needs the environment variable SFT_LAB_NOPE"),
        ("${data.j}", r"line 3: data\.j: Recursive interpolation detected"),
        ("${nope:1}", r"line 3: data\.j: Unsupported interpolation type nope"),
        ("???", r"line 3: data\.j: Missing mandatory value"),
    ],
)
def test_an_unresolvable_reference_names_file_line_and_key(
    compose: Compose, value: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        compose(f"data:\n  k: 1\n  j: {value}\n").resolved()
    assert "\n" not in str(caught.value)


def test_a_broken_override_names_its_key(compose: Compose) -> None:
    with pytest.raises(RequestError, match=r"--data\.k: '\{a: 1' is not a YAML value"):
        compose(**{"data.k": "{a: 1"})
    with pytest.raises(RequestError, match=r"^--data\.k: '9{200}\.\.\.' is not a YAML value\.$"):
        compose(**{"data.k": "9" * 5000})
    with pytest.raises(RequestError, match=r"--data\.k: .*no viable alternative"):
        compose(**{"data.k": "${data.j"})
    with pytest.raises(RequestError, match=r"^--data\.k: Interpolation key 'x' not found"):
        compose(**{"data.k": "${x}"}).resolved()


def test_origins_name_the_last_writer(compose: Compose, tmp_path: Path) -> None:
    composed = compose(DMT, "data:\n  k: {rows: 2}\n", **{"data.stages.generalize.lr": "1"})
    assert composed.origin("data.k.rows") == f"{tmp_path / '1.yaml'}, line 2: "
    assert composed.origin("data.stages.specialize.epochs") == f"{tmp_path / '0.yaml'}, line 7: "
    assert composed.origin("trainer.logger.name") == f"{tmp_path / 'shared/trainer.yaml'}, line 3: "
    assert composed.origin("data.stages.generalize.lr") == "--data.stages.generalize.lr: "
    assert (
        composed.origin("data.seed") == f"{tmp_path / '1.yaml'}, line 1: "
    )  # nowhere: the key above
    assert composed.origin("model.base") == ""
    composed.override("data.k", "1/4")
    assert composed.origin("data.k.rows") == "--data.k: "


def run() -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {"precision": "32-true", "gradient_clip_val": 1.0, "logger": {"uri": "a"}},
        "model": {"base": "world://base"},
        "data": {
            "k": "1/16",
            "batch_size": 8,
            "stages": {
                "specialize": {"mixture": {"math": 1, "code": 1}, "lr": 2e-3},
                "generalize": {"mixture": {"general": 1, "math": "1/16"}, "lr": 1e-3},
            },
        },
        "checkpoint": {"every_n_steps": 10},
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    config = run()
    *above, last = path.split(".")
    place = config
    for key in above:
        place = place[key]
    place[last] = value
    return config


def test_identity_contains_only_what_changes_the_numbers() -> None:
    for path in ("trainer.logger", "checkpoint.every_n_steps", "ckpt_path"):
        assert digest(changed(path, "other")) == digest(run())
    for path in ("seed_everything", "model.base", "data.k", "trainer.precision"):
        assert digest(changed(path, "other")) != digest(run())


def test_the_order_of_stages_is_part_of_a_run() -> None:
    config = run()
    config["data"]["stages"] = dict(reversed(config["data"]["stages"].items()))
    assert digest(config) != digest(run())
    # The order of other keys has no effect.
    assert digest(dict(reversed(run().items()))) == digest(run())


def test_changed_keys_are_dotted_with_both_values() -> None:
    new = changed("data.stages.generalize.mixture", {"general": 1, "code": 2})
    assert changed_keys(run(), new) == [
        ("data.stages.generalize.mixture.math", "1/16", None),
        ("data.stages.generalize.mixture.code", None, 2),
    ]
    assert changed_keys(run(), deepcopy(run())) == []


def resumable(new: dict[str, Any], started_stages: int) -> None:
    check_resumable(identity(run()), identity(new), started_stages=started_stages)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "data.stages.specialize.lr",
            1.0,
            r"data\.stages\.specialize\.lr: stage 'specialize' has been trained with 0\.002, the "
            r"config now says 1\.0\. Restore it",
        ),
        ("data.stages.specialize.mixture.math", 0, r"specialize\.mixture\.math: stage 'special"),
        ("data.guard", {"stage": "specialize"}, r"^data\.guard: the run was started with None"),
        ("data.batch_size", 4, r"^data\.batch_size: the run was started with 8, .* says 4"),
        ("model.base", "x", r"^model\.base: the run was started with world://base"),
        ("trainer.precision", "bf16-mixed", r"^trainer\.precision: .* 32-true, .* bf16-mixed"),
    ],
)
def test_settings_already_trained_with_cannot_change(path: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resumable(changed(path, value), started_stages=1)


def test_a_later_stage_may_still_be_edited_added_or_removed() -> None:
    resumable(run(), 1)
    resumable(changed("data.stages.generalize.lr", 5.0), 1)
    resumable(changed("data.stages.generalize.mixture", {"code": 1}), 1)
    resumable(changed("data.stages.third", {"mixture": {"math": 1}, "lr": 1.0}), 1)
    resumable(changed("data.guard", {"stage": "generalize"}), 1)
    shortened = run()
    del shortened["data"]["stages"]["generalize"]
    resumable(shortened, 1)
    with pytest.raises(RequestError, match=r"generalize\.lr: stage 'generalize' has been trained"):
        resumable(changed("data.stages.generalize.lr", 5.0), 2)


def test_k_may_change_while_only_later_stages_use_it() -> None:
    new = changed("data.k", {"rows": 5})
    new["data"]["stages"]["generalize"]["mixture"]["math"] = {"rows": 5}
    resumable(new, 1)
    with pytest.raises(RequestError, match=r"generalize\.mixture\.math: .* 1/16, .* \{'rows': 5\}"):
        resumable(new, 2)


def test_trained_stages_keep_their_order() -> None:
    reordered = run()
    reordered["data"]["stages"] = dict(reversed(reordered["data"]["stages"].items()))
    with pytest.raises(RequestError, match=r"data\.stages: the run has trained specialize in this"):
        resumable(reordered, 1)
    resumable(reordered, 0)
    removed = run()
    del removed["data"]["stages"]["specialize"]
    with pytest.raises(RequestError, match="has trained specialize in this order"):
        resumable(removed, 1)
