# The two commands that matter: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format env clean evaluate-embedded conformance

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## set up, then watch the embedded pair describe a photograph
	@$(BIN)/vispec demo

test: lint $(VENV)/.tested  ## set up, then lint, check types and run every test
	$(BIN)/python -m pytest -n 2 -m "not slow"
	$(BIN)/python -m pytest -n 2 -m slow --durations 15

test-slow: $(STAMP)  ## only the slow tests (statistics, training, whole-pair runs)
	$(BIN)/python -m pytest -n 2 -m slow

DATA ?= ../shared/data
OUT  ?= outputs/embedded-quality.json
evaluate-embedded: $(STAMP)  ## what the embedded target sees and its draft accepts (photographs: DATA=folder)
	$(BIN)/python -m vispec.evaluation.embedded --data $(DATA) --out $(OUT) \
	  $(if $(ANSWERS),--answers $(ANSWERS))

conformance: $(STAMP)  ## ask every model family the same, and write the README's table of them
	-$(BIN)/python -m pytest -n 2 tests/targets/test_conformance.py --junitxml=.conformance.xml
	$(BIN)/python benchmarks/conformance.py .conformance.xml; asked=$$?; \
	  $(BIN)/python benchmarks/report.py && exit $$asked

lint: $(STAMP)  ## ruff, formatting and types, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env: $(STAMP)  ## create the environment and install vispec into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vispec needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "Creating $(VENV) failed; on Debian and Ubuntu install python3-venv first." >&2; \
	  rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[dev,train,video]'
	@touch $@

# For tests alone. Where torchao is installed, importing transformers prints its warnings; where
# deepspeed is, accelerate imports it in every process, so its tests have it in a folder of its own.
$(VENV)/.tested: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[quantised]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
	  -c constraints.txt --target $(VENV)/deepspeed deepspeed einops hjson msgpack ninja py-cpuinfo
	@touch $@

clean:  ## remove the environment and every cache
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
