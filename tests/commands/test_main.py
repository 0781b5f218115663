"""Test what the command line refuses, with which message, and what it prints."""

import socket
from pathlib import Path

import pytest
import yaml
from tiny_lab import AsciiStream, Lab


def refused(lab: Lab, *arguments: str) -> str:
    """Run a command that must be refused without leaving anything, and return its message."""
    outcome = lab(*arguments)
    assert outcome.code == 2, (outcome.code, outcome.err)
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Loading weights")]
    assert len(lines) <= 2, outcome.err
    assert outcome.out == ""
    assert not (lab.folder / "mlruns").exists()
    return lines[0].removeprefix("error: ")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--data.stages.first.lrr=1", "unknown key 'data.stages.first.lrr'; did you mean"),
        (
            "--data.stages.first.lr=fast",
            "--data.stages.first.lr must be a number, in (0, 1], got fast",
        ),
        ("--data.batch_size=many", "--data.batch_size must be an integer, 1 or more, got many"),
        ("--data.batch_size=5", "data.batch_size must be a multiple of data.micro_batch_size"),
        (
            "--data.k=1/0",
            "--data.k: a share cannot divide by zero, got 1/0. Write",
        ),
        (
            "--data.k={rows: 1.5}",
            "data.k: rows must be an integer, 0 or more, got 1.5",
        ),
        (
            "--data.stages.first.total={epochs: 1}",
            "data.stages.first.total: a share has one key, rows or tokens, got",
        ),
        (
            "--data.guard={stage: second, shares: [0, 1/0], min_retention: {}}",
            "a share cannot divide by zero, got 1/0",
        ),
        ("--data.k=-1/16", "got -1/16"),
        (
            "--data.stages.second.loss=[{class_path: no.Such}]",
            "data.stages.second.loss.0: cannot import no.Such: No module named 'no'.",
        ),
        (
            "--data.stages.second.hand_over="
            "{class_path: sft_lab.training.hand_over.Continue, init_args: {optimizer: foo}}",
            "data.stages.second.hand_over.init_args.optimizer must be fresh or keep, got foo.",
        ),
        (
            "--data.stages.first.mixture.math=-1",
            "--data.stages.first.mixture.math: a share must be 0",
        ),
        ("--data.stages.first.mixture.maths=1", "'maths' (did you mean 'math'?)"),
        ("--data.stages.first.mixture.math=0", "every share is 0"),
        (
            "--data.stages.first.epochs=0",
            "data.stages.first.epochs must be in [1, 10000], or null, got 0",
        ),
        ("--corpus.sources.math.path=gone.jsonl", "gone.jsonl"),
        ("--corpus.sources.math.path=empty.jsonl", "empty.jsonl"),
        ("--corpus.template=vicuna", "vicuna_v1.1"),
        ("--model.base=gone", "gone"),
        ("--model.quantization=nf5", "nf5"),
        ("--model.optimizer=paged_adamw_8bit", "needs CUDA"),
        (
            "--evaluation.every_n_steps=0",
            "evaluation.every_n_steps must be 1 or more, or null, got 0",
        ),
        (
            "--evaluation.benchmarks.world_math.class_path=sft_lab.evaluation.benchmarks.world.WorldMaths",
            "WorldMaths",
        ),
        ("--evaluation.benchmarks.world_math.init_args.path=gone.jsonl", "gone.jsonl"),
        (
            "--trainer.devices=3",
            "data.batch_size counts the sequences of all devices, so it must be a multiple of "
            "data.micro_batch_size times the number of devices, got 4, 2 and 3; set "
            "data.batch_size to a multiple of 3.",
        ),
        ("--trainer.max_epochs=3", "trainer.max_epochs follows from data.stages.*.epochs, got 3"),
        ("--trainer.max_steps=3", "trainer.max_steps"),
        ("--trainer.fast_dev_run=true", "trainer.fast_dev_run"),
        ("--trainer.limit_train_batches=2", "trainer.limit_train_batches"),
        ("--trainer.accumulate_grad_batches=4", "trainer.accumulate_grad_batches"),
        ("--trainer.reload_dataloaders_every_n_epochs=2", "trainer.reload_dataloaders"),
        ("--trainer.accelerator=abacus", "trainer: You selected an invalid accelerator"),
        (
            "--trainer.strategy=fsdp",
            "trainer.strategy fsdp shards a model over several devices, and the run has one",
        ),
        (
            "--trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy}",
            "trainer.strategy ModelParallel: a model is sharded by fsdp (FSDP2) only; set",
        ),
        (  # its annotations do not resolve
            "--trainer.strategy={class_path: lightning.pytorch.strategies.FSDPStrategy}",
            "trainer.strategy FSDPStrategy: a model is sharded by fsdp (FSDP2) only; set",
        ),
        ("--trainer.strategy=fast", "trainer: You selected an invalid strategy"),
        ("--trainer.barebones=true", "trainer: `Trainer(barebones=True"),
        ("--trainer=fast", "--trainer takes keys, or the name of a YAML file, got fast"),
        ("--trainer=null", "--trainer takes keys, or the name of a YAML file, got null"),
        ("--trainer.callbacks+=no.Such", "callbacks.0: cannot import no.Such: No module named"),
        ("--trainer.logger.init_args.experiment_name=", "experiment_name needs a value, got null"),
        ("--checkpoint.dirpath=", "--checkpoint.dirpath needs a value, got null"),
        ("--model.base=", "--model.base needs a value, got null"),
        ("--data.stages=null", "--data.stages needs a value, got null"),
        ("--data.stages={}", "data.stages cannot be set: {} changes nothing of {first, second}"),
        (
            "--data.stages.first.mixture=[math]",
            "first.mixture must be keys with values, got ['math']",
        ),
        (f"--data.stages.{'s' * 61}={{mixture: {{math: 1}}, lr: 1, epochs: 1}}", "at most 60"),
        (
            "--evaluation.benchmarks.world_math.init_args.source=maths",
            "unknown source 'maths' (did you mean 'math'?); corpus.sources has math, general.",
        ),
        (
            "--evaluation.benchmarks.train_loss={class_path: sft_lab.evaluation.benchmarks.world."
            "WorldMath, init_args: {path: world://data/world_math.jsonl, max_new_tokens: 4}}",
            "'train_loss' begins metric keys of the lab itself",
        ),
        (
            "--evaluation.decoding={world_math: {temprature: 1}}",
            "unknown key 'evaluation.decoding.world_math.temprature'; did you mean",
        ),
        ("--trainer.precision=17", "trainer.precision"),
        ("--trainer.accelerator=gpu", "trainer: No supported gpu backend"),
        ("--trainer.logger=false", "trainer.logger must be sft_lab.runs.logger.RunLogger"),
        ("--trainer.logger.init_args.tracking_uri=ftp://x", "got 'ftp://x'"),
        # A folder under a file cannot be made even by root, who ignores permissions.
        ("--trainer.logger.init_args.tracking_uri=sqlite:///tiny.yaml/m.db", "tiny.yaml"),
        ("--trainer.logger.init_args.artifact_location=tiny.yaml/a", "tiny.yaml/a"),
        ("--checkpoint.dirpath=tiny.yaml/c", "checkpoint.dirpath"),
        ("--checkpoint.every_n_steps=0", "checkpoint.every_n_steps must be 1 or more, got 0"),
        ("--ckpt_path=gone.ckpt", "--ckpt_path gone.ckpt: no such file"),
        ("--ckpt_path=last", "holds no unfinished run of this config"),
        ("--ckpt_path=tiny.yaml", "tiny.yaml is damaged or not a checkpoint"),
    ],
)
@pytest.mark.slow
def test_a_wrong_value_is_refused_before_a_run_is_created(
    lab: Lab, override: str, message: str
) -> None:
    lab.write("empty.jsonl", "")
    assert message in refused(lab, "fit", "--config=tiny.yaml", override)


def test_an_unreachable_server_is_named(lab: Lab) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    override = f"--trainer.logger.init_args.tracking_uri={uri}"
    assert f"no MLflow server answers at {uri}" in refused(
        lab, "fit", "--config=tiny.yaml", override
    )


def test_an_error_names_file_and_line(lab: Lab) -> None:
    lab.write("later.yaml", "# a typo\ndata:\n  stages:\n    second: {epoch: 2}\n")
    message = refused(lab, "fit", "--config=tiny.yaml", "--config=later.yaml")
    assert message == (
        "later.yaml, line 4: unknown key 'data.stages.second.epoch'; "
        "did you mean 'data.stages.second.epochs'?"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "fit needs --config FILE"),
        (["fit", "--config"], "--config needs a value"),
        (["fit", "--config=gone.yaml"], "--config gone.yaml: does not exist"),
        (["fit", "--config=tiny.yaml", "--modle.base=x"], "--modle.base"),
        (["validate", "--config=tiny.yaml", "--ckpt_path=gone.ckpt"], "no such file"),
        (["compare", "gone"], "no run 'gone'"),
        (
            ["report", "--study=gone.yaml", "--out=o"],
            "--study gone.yaml: does not exist; give a YAML file such as configs/studies/rq1.yaml",
        ),
        (["export", "--ckpt_path=gone.ckpt", "--out=out"], "no such file"),
        (["world", "build", "--out=w", "--tokens=0"], "--tokens: must be 1 or more, got 0"),
        (["world", "build", "--out=w", "--seed=-1"], "--seed: must be in [0, 4294967295], got -1"),
        (["represent", "x", "--out=o", "--layer=0"], "--layer: must be 1 or more, got 0"),
        (["represent", "x", "--out=o", "--perplexity=nan"], "--perplexity: must be above 0"),
        (
            ["compare", "x", "--items=\x1b[2J"],
            "--items: must be an integer, 0 or more, got \\x1b[2J",
        ),
        (["compare", "x", "--items=-1"], "--items: must be 0 or more, got -1"),
        (["trane"], "unknown command 'trane'; the commands are fit, validate"),
        ([], "sft-lab needs a command"),
    ],
)
def test_a_wrong_command_is_refused(lab: Lab, arguments: list[str], message: str) -> None:
    outcome = lab(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert lab.runs == []


def test_a_tokenizer_without_template_needs_corpus_template(lab: Lab, make_tokenizer) -> None:  # type: ignore[no-untyped-def]
    make_tokenizer().save_pretrained(lab.folder / "bare")
    (lab.folder / "bare/config.json").write_bytes((lab.world / "base/config.json").read_bytes())
    message = refused(lab, "fit", "--config=tiny.yaml", "--model.base=bare")
    assert "corpus.template" in message
    assert "vicuna_v1.1" in message


def test_a_later_file_sets_one_share_and_leaves_the_rest(lab: Lab) -> None:
    lab.write("later.yaml", "data: {stages: {second: {mixture: {math: 1/2}}}}")
    outcome = lab("fit", "--config=tiny.yaml", "--config=later.yaml", "--print_config")
    assert outcome.code == 0
    stages = yaml.safe_load(outcome.out)["data"]["stages"]
    assert stages["second"]["mixture"] == {"general": 1, "math": "1/2"}
    assert stages["second"]["lr"] == 5e-3
    assert stages["first"]["mixture"] == {"math": 1}


def test_a_printed_config_can_be_used_as_config(lab: Lab) -> None:
    printed = lab.fit("--data.k=1/2", "--print_config").out
    lab.write("printed.yaml", printed)
    again = lab("fit", "--config=printed.yaml", "--print_config")
    assert again.code == 0, again.err
    assert again.out == printed
    assert lab("validate", "--config=printed.yaml", "--print_config").code == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--help"], "compare"),
        (["fit", "--help"], "--ckpt_path last|FILE"),
        (["fit", "--help_all"], "--data.batch_size"),
        (["compare", "--help"], "--json"),
        (["world", "build", "--help"], "--tokens"),
    ],
)
def test_help_is_printed(lab: Lab, arguments: list[str], text: str) -> None:
    outcome = lab(*arguments)
    assert outcome.code == 0
    assert text in outcome.out


def test_help_leaves_no_files(lab: Lab) -> None:
    before = sorted(Path(lab.folder).iterdir())
    lab("fit", "--help")
    lab.fit("--print_config")
    assert sorted(Path(lab.folder).iterdir()) == before


def test_an_ascii_terminal_gets_escapes(lab: Lab) -> None:
    shown = lab("inspect", "--config=tiny.yaml", stream=AsciiStream())
    assert shown.code == 0, shown.err
    assert "\\u27e6" in shown.out  # the bracket before trained text
