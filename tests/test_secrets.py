"""Put marked secrets wherever the lab or its libraries read some, and search all that it writes."""

import gzip
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from conftest import write_jsonl
from judge_server import Server
from study_runs import STUDY
from tiny_lab import CommandOutput, Lab
from vllm_server import VllmStandIn

from sft_lab.commands import arguments
from sft_lab.errors import RequestError, has_credentials, hide_credentials
from sft_lab.evaluation.endpoint import check_base_url
from sft_lab.runs.store import RunStore
from sft_lab.study import study
from sft_lab.study.job import CELL_TAG, Ended, Job
from sft_lab.study.run_job import fit_arguments

PASSWORD = "MARKED-PASSWORD"
ADDRESS = f"http://ada:{PASSWORD}@127.0.0.1:9"
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "GITHUB_TOKEN",
    "HF_TOKEN",
    "JUDGE_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "OPENAI_API_KEY",
    "SFT_LAB_SECRET",
    "VLLM_KEY",
    "WANDB_API_KEY",
)
MARK = "MARKED-SECRET"

REFERENCES = [{"question_id": 101, "choices": [{"index": 0, "turns": ["2", "3"]}]}]
QUESTIONS = [{"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}]
EVALUATION = """
engine: vllm
vllm: {{base_url: "{vllm}", api_key_env: VLLM_KEY}}
benchmarks:
  mt_bench:
    class_path: sft_lab.evaluation.benchmarks.mt_bench.benchmark.MTBench
    init_args:
      path: question.jsonl
      references: references.jsonl
      judge_prompts: {prompts}
      judge:
        class_path: sft_lab.evaluation.judge.judge.Judge
        init_args: {{model: judge, base_url: "{judge}", api_key_env: JUDGE_KEY, cache: judgements}}
      max_new_tokens: 3
"""


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ada:pw@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://ada:p@ss@host/db", "postgresql://***@host/db"),
        ("https://hf_token@huggingface.co", "https://***@huggingface.co"),
        ("https://ada:p/w?#@host", "https://***@host"),  # characters that should be encoded
        ("http://host/?token=p&n=1", "http://host/?token=***&n=1"),
        ("https://host/x?n=1&X-Amz-Signature=p", "https://host/x?n=1&X-Amz-Signature=***"),
        ("http://host/x;a=1;tok%65n=p", "http://host/x;a=1;tok%65n=***"),
        ("http://host/#auth=p", "http://host/#auth=***"),
        ("https://host/?sig=p&bearer=q", "https://host/?sig=***&bearer=***"),
        ("http://host/?author=ada&design=1", None),
        ("http://host/?page=1", None),
        ("http://[::1]:5000/a@b", None),
        ("http://host:5000/a@b", None),
        ("hf://datasets/org/name@main/x.jsonl", None),
        ("sqlite:////home/ada@lab/mlflow.db", None),
        ("world://base", None),
        ("Write to ada@example.org.", None),
    ],
)
def test_credentials_of_an_address_are_recognised_and_hidden(
    address: str, shown: str | None
) -> None:
    assert has_credentials(address) == (shown is not None)
    if "://" in address:
        assert has_credentials(address, needs_scheme=False) == (shown is not None)
    assert hide_credentials(f"got {address!r}.") == f"got {shown or address!s}.".replace(
        shown or address, repr(shown or address)
    )


@pytest.mark.parametrize("piece", ["?key", "?", "&", "://a:", "a:/b:", "://[", "@", "?key=", ":1"])
def test_hiding_takes_time_in_proportion_to_a_text(piece: str) -> None:
    start = time.process_time()
    hide_credentials(piece * 10_000)
    assert time.process_time() - start < 1  # "?key" took minutes


def refused(outcome: CommandOutput, *said: str) -> None:
    assert outcome.code == 2, outcome.err
    assert PASSWORD not in outcome.out + outcome.err
    for text in said:
        assert text in outcome.err


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("trainer.logger.init_args.tracking_uri", "MLFLOW_TRACKING_PASSWORD"),
        ("evaluation.vllm.base_url", "evaluation.vllm.api_key_env"),
        ("corpus.sources.math.path", "leave them out"),
    ],
)
def test_a_config_with_credentials_in_an_address_is_refused_and_not_printed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, key: str, fix: str
) -> None:
    monkeypatch.setenv("ELSEWHERE", ADDRESS)
    in_query = f"http://127.0.0.1:9/?api_key={PASSWORD}"
    for value in (ADDRESS, "${oc.env:ELSEWHERE}", in_query):
        refused(lab.fit(f"--{key}={value}", "--print_config"), key, fix)
    assert not (lab.folder / "mlruns").exists()


def test_an_address_without_scheme_is_not_printed_either(lab: Lab) -> None:
    bare = f"ada:{PASSWORD}@127.0.0.1:9"
    for key in ("trainer.logger.init_args.tracking_uri", "evaluation.vllm.base_url"):
        refused(lab.fit(f"--{key}={bare}", "--print_config"), key)
    for check in (RunStore, check_base_url):
        with pytest.raises(RequestError) as said:
            check(bare)
        assert PASSWORD not in str(said.value)


def test_commands_neither_take_nor_print_credentials_of_a_store(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(lab("compare", "a", f"--tracking_uri={ADDRESS}"), "MLFLOW_TRACKING_PASSWORD")
    refused(lab("compare", "a", f"--store={ADDRESS}"), "--store")  # an unknown option
    monkeypatch.setattr(arguments, "TRACKING_URI", ADDRESS.replace("ada", "a%20da"))
    refused(lab("compare", "a"), "MLFLOW_TRACKING_PASSWORD")
    helped = lab("compare", "--help")
    assert helped.code == 0
    assert "http://***@127.0.0.1:9" in helped.out
    assert PASSWORD not in helped.out


class InProcess:
    """Runs a study's jobs in this process, one after another."""

    lab: Lab
    job: Job
    outputs: list[CommandOutput]

    def __init__(self, *_: object) -> None:
        self.waiting: list[Job] = []

    def submit(self, job: Job) -> None:
        assert job.environment["MLFLOW_TRACKING_PASSWORD"].startswith(MARK)  # the job needs it
        self.waiting.append(job)

    def wait(self, timeout_s: float) -> Sequence[Ended]:
        job = InProcess.job = self.waiting.pop()
        outcome = self.lab("fit", *fit_arguments(job, []))
        assert outcome.code == 0, outcome
        self.outputs.append(outcome)
        (run,) = [run for run in self.lab.runs if run.data.tags.get(CELL_TAG) == job.digest]
        return [Ended(job.digest, outcome.code, run.info.run_id)]

    def stop(self) -> None: ...


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_anything_that_is_written(
    study_lab: Lab,
    vllm: VllmStandIn,
    server: Server,
    shared_data: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = study_lab
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{MARK}-{name}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://ada:{MARK}-HTTPS_PROXY@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")  # MLflow names her as the run's user
    vllm.key = f"{MARK}-VLLM_KEY"
    prompts = shared_data("mt_bench/judge_prompts.jsonl")
    config = yaml.safe_load((lab.folder / "math.yaml").read_text())
    evaluation = EVALUATION.format(vllm=vllm.url, judge=server.url, prompts=prompts)
    lab.write("math.yaml", yaml.safe_dump({**config, "evaluation": yaml.safe_load(evaluation)}))
    write_jsonl(lab.folder / "question.jsonl", QUESTIONS)
    write_jsonl(lab.folder / "references.jsonl", REFERENCES)
    question = {"title": "Anything?", "arms": {"math": {"config": "./math.yaml"}}}
    lab.write("study.yaml", yaml.safe_dump({**STUDY, "questions": {"q": question}}))
    InProcess.lab, InProcess.outputs = lab, []
    monkeypatch.setattr(study, "RayExecutor", InProcess)

    printed = []
    for command in (
        "study --config=study.yaml",
        "report --study=tiny --out=report",
        "compare RUN --json",
        "fit --config=math.yaml --print_config",
        "fit --config=math.yaml --plan",
    ):
        run = InProcess.job.name if InProcess.outputs else ""
        outcome = lab(*[run if word == "RUN" else word for word in command.split()])
        assert outcome.code == 0, (command, outcome, InProcess.outputs)
        printed += [outcome, *InProcess.outputs]
    assert server.keys[-1] == f"Bearer {MARK}-JUDGE_KEY"  # it was used
    assert len(list(lab.folder.glob("report/*.html"))) == 1
    assert not [outcome for outcome in printed if MARK in outcome.out + outcome.err]
    written = dict(contents(lab.folder))
    assert {"mlflow.db", "last.ckpt", "report.html"} <= {Path(path).name for path in written}
    assert not [path for path, content in written.items() if MARK.encode() in content]


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file below a folder, and every member of an archive, with its content."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            yield str(path), gzip.decompress(content) if path.suffix == ".gz" else content
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for name in archive.namelist():
                        yield f"{path}/{name}", archive.read(name)
