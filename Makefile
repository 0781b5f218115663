# make demo: set up, train two strategies on the embedded world, compare them.
# make test: set up, run every check and test, but for the long matrices of make extended.
# Both need only Python 3.11.5 or later.
PYTHON ?= python3
BIN := .venv/bin
# One process per core, at most four, since each loads torch. Tests of one file share fixtures, and
# tests/conftest.py puts the longest files first.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Bytecode is written at the first import, not at installation: most modules are never imported.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test quick extended ui lint docs schema lock audit clean

setup: .venv/ready

# All but torch is checked against the hashes of the locks. torch comes with what its build needs,
# such as CUDA packages, and finds the rest installed.
.venv/ready: pyproject.toml constraints.txt requirements.lock build.lock
	$(PYTHON) -m venv .venv
	$(PIP) install --no-deps --require-hashes -r build.lock
	$(PIP) install --no-compile --no-deps --no-build-isolation --require-hashes -r requirements.lock
	$(PIP) install --no-compile -c constraints.txt torch
	$(PIP) install --no-deps --no-build-isolation -e .
	$(PIP) check
	touch $@

demo: setup
	$(BIN)/python -m sft_lab fit --config configs/world/sequential.yaml
	$(BIN)/python -m sft_lab fit --config configs/world/dmt.yaml
	$(BIN)/python -m sft_lab compare "sequential seed 0" "dmt k=1/16 seed 0"

test: setup lint docs
	$(PYTEST)

quick: setup lint
	$(PYTEST) -m "not slow and not gpu and not extended"

# The variants that make test leaves out: more kills, forks, model families, platforms.
extended: setup
	$(PYTEST) -m "extended and not gpu"

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict: a dead link, a dead anchor or a missing API name fails the build.
docs: setup
	$(BIN)/python docs/configuration_reference.py
	$(BIN)/zensical build --clean --strict

# JSON schemas for editors: run this after changing a config key or its description.
schema: setup
	$(BIN)/python docs/config_schema.py

# Hashed versions of what setup installs: run this after changing constraints.txt.
lock:
	.ci/lock

# Known vulnerabilities of pinned packages; asks PyPI for each one.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip --disable-pip-version-check --quiet install pip-audit
	build/audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

ui: setup
	$(BIN)/python -m sft_lab ui

clean:
	rm -rf .venv build site *.egg-info
