# Two commands do everything: `make demo` and `make test`. Nothing is left outside this folder.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export XDG_CACHE_HOME := $(CURDIR)/.cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install lock audit demo check lint types unit test test-full test-newest bench docs mutants fuzz clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Make the virtual environment with every pinned dependency

# Nothing is installed whose hash is not listed. Torch is the CPU build where pip finds one, and the CUDA build elsewhere.
LOCKED := --quiet --no-deps --no-build-isolation --require-hashes --requirement requirements
$(INSTALLED): pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(LOCKED)/build.txt
	$(BIN)/pip install $(LOCKED)/cpu.txt || $(BIN)/pip install $(LOCKED)/cuda.txt
	$(BIN)/pip install $(LOCKED)/run.txt --requirement requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	@touch $@

lock:  ## Write requirements/ anew, after a change of constraints.txt (needs a network)
	$(PYTHON) requirements/renew.py

audit:  ## Known weaknesses of all locked packages (needs a network, and says so)
	$(PYTHON) requirements/audit.py

demo: $(INSTALLED) demo/shards/train/manifest.json demo/shards/val/manifest.json  ## From nothing to a registered model, in minutes
	$(BIN)/yolofleet train jobs/quickstart.yaml
	@echo; echo "Next, find objects in images:"
	@echo "  $(BIN)/yolofleet predict models:/quickstart@candidate demo/images/images/000009.jpg --out predictions \\"
	@echo "      --tracking-uri sqlite:///demo/runs/_mlflow/mlflow.db"

demo/images/instances_train.json demo/images/instances_val.json &: | $(INSTALLED)
	$(BIN)/yolofleet data synth demo/images --images 1500 --seed 1

demo/shards/%/manifest.json: demo/images/instances_%.json
	$(BIN)/yolofleet data shard $< demo/images/images demo/shards/$*
.PRECIOUS: demo/images/instances_%.json demo/shards/%/manifest.json

check: lint types unit  ## Lint, types and unit tests (three minutes)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto -m "not slow and not system"

test: $(INSTALLED)  ## Everything that is promised, once (twenty minutes, install included; two tests at a time)
	$(MAKE) lint types unit
	$(BIN)/pytest -q -n 2 --dist loadfile -m "system and not slow" --durations=10

test-full: $(INSTALLED)  ## Everything that this machine can run, two tests at a time, with times and what was skipped
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations=0

test-newest: $(INSTALLED)  ## The tests of all that uses Ray, with the newest Ray (needs a package index)
	$(PYTHON) -m venv $(VENV)-newest
	cp -a $(VENV)/lib/python3*/site-packages/. $(VENV)-newest/lib/python3*/site-packages/
	$(VENV)-newest/bin/pip install --quiet --upgrade "ray[train,tune]"
	$(VENV)-newest/bin/python -c 'import ray; print("ray", ray.__version__)'
	PATH="$(CURDIR)/$(VENV)-newest/bin:$$PATH" $(VENV)-newest/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow" \
	    tests/core tests/cluster tests/search tests/training

# The others take long or need data: search_quality, soak, strategy_memory, all in benchmarks/training.
BENCHMARKS := average_precision checkpoint data_path deployed_form fetching inference loading matching model_profile \
              non_maximum_suppression object_storage resume_cost serving trial_startup

bench: $(INSTALLED)  ## Ratios against named peers
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

docs: $(INSTALLED)  ## The documentation as a site, in docs/_site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_site

mutants: $(INSTALLED)  ## Small mistakes in the package that no test notices (an hour)
	$(BIN)/python benchmarks/mutants.py

fuzz: $(INSTALLED)  ## 100,000 hostile inputs for every reader of foreign bytes
	$(BIN)/python tests/fuzz/run.py --cases 100000 --jobs 2

clean:  ## Remove the environment, the demo and all caches
	rm -rf $(VENV) $(VENV)-newest demo docs/_site .cache build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
