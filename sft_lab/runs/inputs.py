"""Digests of a run's inputs, which reveal changes between its processes."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version

from sft_lab import distributed
from sft_lab.errors import RequestError
from sft_lab.hub import commit_of
from sft_lab.model.base_digest import base_digest
from sft_lab.paths import is_hub_name, package_dir, resolve, unpinned
from sft_lab.runs.machine import devices_text
from sft_lab.terminal import counted
from sft_lab.training.data_modules import StageDataModule, StagedDataModule

PACKAGES = ("sft_lab", "torch", "lightning", "transformers", "peft", "bitsandbytes", "mlflow")
BASE, TOKENIZER = "model.base", "the tokenizer of model.base"
CODE = "code of sft_lab"
_PLAN = "the plan of stage "
_SAID = ("version of ", "prompts of ", "commit of ", "number of devices")
"""Beginnings of the names of what may change: it is said and recorded."""


def run_inputs(data: StagedDataModule, base: str, *, sharded: bool = False) -> dict[str, str]:
    """Return the digests of a run's inputs, by a name for people.

    Args:
        data: The stages, sources and benchmarks, set up.
        base: The base model.
        sharded: Whether the model is sharded over the run's devices.
    """
    prompts = data.evaluation.prompts(data.corpus.renderer)
    found = {BASE: base_digest(base), TOKENIZER: data.corpus.renderer.tokenizer_digest}
    for name, source in data.corpus.loaded.items():
        found[f"corpus.sources.{name}"] = f"{source.digest} ({counted(len(source.rows), 'row')})"
    for name, benchmark in data.evaluation.benchmarks.items():
        items = len(benchmark.items())
        found[f"evaluation.benchmarks.{name}"] = f"{benchmark.digest()} ({counted(items, 'item')})"
        # They follow from items, tokenizer and code; a template may print the date.
        found[f"prompts of {name}"] = prompts[name].digest
    found |= {f"commit of {name}": commit for name, commit in hub_commits(data, base).items()}
    for module in data.stage_modules:
        found[f"{_PLAN}'{module.first_plan.name}'"] = _plan_digest(module)
    found["number of devices"] = devices_text(distributed.world_size(), sharded=sharded)
    return found | {f"version of {package}": version(package) for package in PACKAGES}


def hub_commits(data: StagedDataModule, base: str) -> dict[str, str]:
    """Return the commits of a run's hub names, by the key that names each."""
    found = {
        f"corpus.sources.{name}": data.corpus.sources[name].row_files(name).commit()
        for name in data.corpus.loaded
    } | {
        f"evaluation.benchmarks.{name}": benchmark.commit
        for name, benchmark in data.evaluation.benchmarks.items()
    }
    for key, named in ((BASE, base), ("corpus.tokenizer", data.corpus.tokenizer_name)):
        name, revision = unpinned(resolve(named))
        found[key] = commit_of(key, name, "model", revision) if is_hub_name(name) else None
    return {key: commit for key, commit in found.items() if commit is not None}


def _plan_digest(module: StageDataModule) -> str:
    """Return a SHA-256 of the samples of a stage in order, as planned before a guard steers it."""
    digest = hashlib.sha256()
    for window in module.first_plan.windows:
        for refs in window:
            for ref in refs:
                sample = module.corpus.loaded[ref.source].sample_ids[ref.index]
                digest.update(f"{ref.source} {sample}\n".encode())
            digest.update(b"-\n")
        digest.update(b"=\n")
    return digest.hexdigest()


def check_inputs(
    old: Mapping[str, str],
    new: Mapping[str, str],
    asked: str,
    *,
    trained: Collection[str] = (),
    only: Collection[str] | None = None,
) -> list[str]:
    """Check that a run's inputs equal its checkpoint's.

    Args:
        old: The checkpoint's.
        new: Those found now.
        asked: The option that names the checkpoint, with its value.
        trained: Stages that have been trained; plans of others may change.
        only: Names of inputs that must not change; by default all but versions.

    Returns:
        A line for each version that has changed, or other thing that may.

    Raises:
        RequestError: Naming what has changed.
    """
    said: list[str] = []
    for name, before, now in _changes(old, new):
        if name.startswith(_SAID):
            said.append(f"{name}: {_short(before)}, now {_short(now)}")
            continue
        stage = name.removeprefix(_PLAN).strip("'") if name.startswith(_PLAN) else None
        if (stage is not None and stage not in trained) or (only is not None and name not in only):
            continue
        raise RequestError(
            f"{asked}: {name} has changed since the checkpoint was written: it was "
            f"{_short(before)}, it is {_short(now)}. Restore it, or start a new run."
        )
    return said


def code_digest(without: Collection[str] = ()) -> str:
    """Return a digest of the lab's own modules: machines may have two checkouts of one version.

    Args:
        without: Folders of the package to leave out.
    """
    found = hashlib.sha256()
    package = package_dir()
    # A checkout links to the callbacks, and links are not followed.
    for file in sorted({*package.rglob("*.py"), *(package / "callbacks").rglob("*.py")}):
        path = file.relative_to(package)
        if path.parts[0] not in without:
            found.update(f"{path.as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()


def check_same(inputs: Sequence[Mapping[str, str]]) -> None:
    """Check that all ranks of a run have the same inputs.

    Args:
        inputs: Every rank's, by name.

    Raises:
        RequestError: Naming an input that differs, and the ranks.
    """
    first = inputs[0]
    for rank, found in enumerate(inputs[1:], start=1):
        for name in first.keys() | found.keys():
            if first.get(name) != found.get(name):
                raise RequestError(
                    f"{name} differs between processes of this run: {_short(str(first.get(name)))} "
                    f"on rank 0, {_short(str(found.get(name)))} on rank {rank}; give all machines "
                    "the same files and packages, and the same code."
                )


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield what both have and differ in: stages to come may bring and drop sources."""
    for name, before in old.items():
        if new.get(name, before) != before:
            yield name, before, new[name]


def _short(value: str) -> str:
    """Return a digest cut to 12 digits, with its count.

    >>> _short("0123456789abcdef" * 4 + " (24 rows)")
    '0123456789ab (24 rows)'
    """
    digest, space, count = value.partition(" (")
    return (digest[:12] if len(digest) == 64 else digest) + space + count
