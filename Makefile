# Two commands on a fresh machine with Python and make: `make run`, `make test`. Everything else is for those who stay.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 4
SEED   ?= 1
ROUNDS ?= 100

.DEFAULT_GOAL := help
.PHONY: help run test test-fast lint types ship browser clients other-sdks campaign own-seq laws rolling bench bench-short clean

help:  ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The stamp is newer than pyproject.toml exactly when the environment has what pyproject.toml asks for.
$(VENV)/.ready: pyproject.toml
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "relay needs Python 3.11 or newer, this is " + sys.version)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(VENV)/.ready  ## an upstream, the relay, a run streaming, the dashboard: all of it, here
	@$(BIN)/relay demo $(ARGS)

test: $(VENV)/.ready lint types  ## every test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-fast: $(VENV)/.ready  ## the tests without real processes and faults
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not system and not browser and not ship' $(ARGS)

lint: $(VENV)/.ready  ## style and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.ready  ## mypy --strict
	$(BIN)/mypy

ship: $(VENV)/.ready  ## chart and image checks (installs their checkers into the environment)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ship]'
	$(BIN)/python -m pytest -m ship tests/ship $(ARGS)

browser: $(VENV)/.ready  ## the tests in a real Chromium (which must be on this machine)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

clients: other-sdks  ## the tests with the vendors' own SDKs (installs them), which write docs/compatibility.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[clients]'
	RELAY_TEST_COMPATIBILITY=docs/compatibility.md $(BIN)/python -m pytest -n $(JOBS) -m clients tests/clients $(ARGS)

# Versions that cannot live beside those in the environment: the newest openai SDK, and a seekrai from before Vercel chunks.
other-sdks: $(VENV)/.ready  ## other versions of the vendors' SDKs, for `make clients`
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/other-sdks/openai-newest openai==3.54.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/other-sdks/seekrai-legacy seekrai==0.20.0

campaign: $(VENV)/.ready  ## real processes under seeded faults, judged by an offline checker (SEED, ROUNDS)
	$(BIN)/python -m tests.campaign --seed $(SEED) --rounds $(ROUNDS) $(ARGS)

rolling: $(VENV)/.ready  ## a rolling restart under a thousand viewers: nothing lost, reconnects counted (SEED)
	$(BIN)/python -m tests.campaign.rolling --seed $(SEED) $(ARGS)

laws: $(VENV)/.ready  ## the laws of snapshots and coalescing on 10,000 made-up runs, for every cut (SEED)
	RELAY_TEST_FOLDS=10000 RELAY_TEST_SEED=$(SEED) $(BIN)/python -m pytest --timeout 1800 tests/core/test_fold.py $(ARGS)

own-seq: $(VENV)/.ready  ## 12,000 seeded lives of runs without seq, under cuts, crashes and losses (SEED)
	RELAY_TEST_OWN_SEQ=12000 RELAY_TEST_SEED=$(SEED) $(BIN)/python -m pytest tests/ingest/test_own_seq_campaign.py $(ARGS)

bench: $(VENV)/.ready  ## throughput, latency and cost against peers, as ratios of one run (25 minutes; ARGS: docs/benchmarks.md)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks $(ARGS)

bench-short: $(VENV)/.ready  ## the same in a minute, for the eye only
	$(BIN)/python -m benchmarks --short $(ARGS)

clean:  ## remove what was built here
	rm -rf $(VENV) build dist .relay .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
