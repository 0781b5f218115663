"""Check that the locks with hashes agree with the constraints and with what is installed."""

import re
import subprocess
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))? \\$", re.M)


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def locked(lock: str) -> dict[str, str]:
    """Return the versions that a lock holds for this platform."""
    return {
        canonicalize_name(entry["name"]): entry["version"]
        for entry in ENTRY.finditer((ROOT / lock).read_text())
        if not entry["marker"] or Marker(entry["marker"]).evaluate()
    }


def needed(requirement: Requirement) -> set[str]:
    """Return all packages that a requirement leads to here, leaving out what torch brings."""
    found: set[str] = set()
    waiting, seen = [requirement], set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen or key[0] == "torch":
            continue
        seen.add(key)
        found.add(key[0])
        for text in requires(wanted.name) or []:
            below = Requirement(text)
            extras = wanted.extras or {""}
            if not below.marker or any(below.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(below)
    return found


@pytest.mark.parametrize("lock", ["requirements.lock", "build.lock"])
def test_a_lock_has_the_versions_of_the_constraints_and_a_hash_for_each(lock: str) -> None:
    versions = constraints()
    found = locked(lock)
    assert found
    assert {name: versions.get(name) for name in found} == found
    packages = re.split(r"^(?=\w)", (ROOT / lock).read_text(), flags=re.M)[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", package) for package in packages)
    assert len(packages) == len(ENTRY.findall((ROOT / lock).read_text()))
    assert "://" not in (ROOT / lock).read_text()  # no package index is named


def test_all_that_development_needs_is_locked_but_torch() -> None:
    names = needed(Requirement("sft_lab[dev]")) - {"sft-lab"}
    assert len(names) > 100
    assert names - set(locked("requirements.lock")) == set()
    assert "torch" not in locked("requirements.lock")
    assert distribution("torch").version.partition("+")[0] == constraints()["torch"]


def test_setup_takes_no_package_but_torch_without_a_hash() -> None:
    command = ["make", "--dry-run", "--always-make", "setup"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in made.splitlines() if " install " in line]
    hashed = [line for line in installs if "--require-hashes" in line]
    assert [line.split()[-1] for line in hashed] == ["build.lock", "requirements.lock"]
    *_, torch, ours = installs
    assert torch.endswith("-c constraints.txt torch")
    assert ours.endswith("--no-deps --no-build-isolation -e .")
    assert len(installs) == 4
    # Whatever builds a package could otherwise bring others along.
    assert all("--no-deps" in line for line in hashed)
    assert "--no-build-isolation" in hashed[1]
