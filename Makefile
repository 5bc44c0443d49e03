# `make demo` and `make test` set up what they need in .venv; nothing else has to be installed by hand.

PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.stamp
PLOTS  := $(VENV)/.plots
BIN    := $(VENV)/bin
RUN    := $(BIN)/python

.PHONY: demo test lint types imports fetch fetch-if-possible pytest bench bench-sched bench-disk soak mutants clean

demo: $(STAMP)
	@$(BIN)/xenpy demo

test: lint types imports fetch-if-possible pytest

lint: $(STAMP)
	@$(BIN)/ruff check .

types: $(STAMP)
	@$(BIN)/mypy

imports: $(STAMP)
	@$(RUN) -m tools.import_check

# Guest tests say by themselves why they skip (or, under CI, fail) when this does not succeed.
fetch-if-possible: $(STAMP)
	@$(RUN) -m tools.fetch_guests || true

fetch: $(STAMP)
	@$(RUN) -m tools.fetch_guests

pytest: $(STAMP)
	@$(RUN) -m pytest -m "not soak" $(PYTEST_ARGS)

# The random tests with many more examples, other ones each time, and the tests too long for `make test`.
soak: $(STAMP) fetch-if-possible
	@XENPY_SOAK=1 $(RUN) -m pytest $(PYTEST_ARGS)

# One check taken out of a copy of the firmware at a time: some test must fail each time.
mutants: $(STAMP)
	@$(RUN) -m tools.mutants $(MUTANTS_ARGS)

bench: $(STAMP) fetch
	@$(RUN) -m tools.bench $(BENCH_ARGS)

# CPU schedulers: fairness, latency, gangs, speed-up, cost; plots go to bench-plots.
bench-sched: $(PLOTS) fetch
	@$(RUN) -m tools.bench --only sched-sim --only sched-guests --only sched-cost --output bench-sched.json $(BENCH_ARGS)

# Disks: what requests cost, Debian's dd beside QEMU's, the cache, schedulers against each other, xenstore; plots
# go to bench-plots.
bench-disk: $(PLOTS) fetch
	@$(RUN) -m tools.bench --only disk-cost --only disk-guest --only disk-cache --only disk-shares --only store \
		--output bench-disk.json $(BENCH_ARGS)

$(PLOTS): $(STAMP)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable '.[dev,plots]'
	@touch $@

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xenpy needs Python 3.11 or newer; set PYTHON=")'
	@echo "setting up $(VENV)" >&2
	@$(PYTHON) -m venv --clear $(VENV) || { echo "no venv module: install python3-venv" >&2; exit 1; }
	@$(RUN) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info bench-*.json bench-plots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
