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

.PHONY: help install wheel lock audit demo check lint types unit test test-full test-newest bench docs mutants fuzz clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Make the virtual environment with every pinned dependency

# Nothing is installed whose hash is not listed. TORCH: cpu, cu130, or auto: the CPU build where pip finds it at hand, else
# CUDA's (several GB).
TORCH ?= auto
ifneq ($(TORCH),auto)
ifneq ($(wildcard $(INSTALLED)),)
ifneq ($(shell cat $(INSTALLED)),$(TORCH))
$(error TORCH=$(TORCH), but $(VENV) has the $(shell cat $(INSTALLED)) build of torch: run 'make clean' first)
endif
endif
endif
install_locked = $(BIN)/pip install --no-deps --no-build-isolation --require-hashes --progress-bar off \
    --requirement requirements/$(1).txt $(2) | awk -v tty="$$(test -t 1 && echo 1)" \
    -v total="$$(grep -c == requirements/$(1).txt)" -f requirements/progress.awk
CPU_INDEX := --index-url https://download.pytorch.org/whl/cpu

$(INSTALLED): pyproject.toml $(wildcard requirements/*.txt)
	@echo "installing into $(VENV): torch, then about 300 packages; two to three minutes, plus download time"
	@$(PYTHON) -m venv $(VENV)
	@$(call install_locked,build)
	@case "$(TORCH)" in \
	cpu) echo "torch: the CPU build"; \
	    { $(call install_locked,cpu,2> /dev/null); } || { $(call install_locked,cpu,$(CPU_INDEX)); } ;; \
	cu130) echo "torch: the build for CUDA 13.0"; $(call install_locked,cuda) ;; \
	auto) echo "torch: the CPU build, if it is at hand"; { $(call install_locked,cpu,2> /dev/null); } \
	    || { echo "torch: the build for CUDA 13.0 (TORCH=cpu fetches the CPU build instead)"; \
	         $(call install_locked,cuda); } ;; \
	*) echo "TORCH=$(TORCH): use cpu, cu130 or auto" >&2; exit 2 ;; \
	esac
	@echo "what training needs"; $(call install_locked,run)
	@echo "what tests and linters need"; $(call install_locked,dev)
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/pip check
	@$(BIN)/python -c "from importlib.metadata import version; build = version('torch').partition('+')[2]; \
	    print(build or 'cu130')" > $@

wheel: $(INSTALLED)  ## Build the package as dist/yolofleet-VERSION-py3-none-any.whl
	@rm -rf build
	@trap 'rm -f platform/yolofleet/commit.txt' EXIT; \
	    { git describe --always --dirty=+ --exclude='*' --abbrev=12 || true; } > platform/yolofleet/commit.txt; \
	    $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

lock:  ## Write requirements/ again after a change of constraints.txt (needs a network)
	$(PYTHON) requirements/renew.py

audit:  ## Known vulnerabilities of all locked packages (needs a network)
	$(PYTHON) requirements/audit.py

demo: $(INSTALLED)  ## From nothing to a registered model in minutes; TORCH=cpu or cu130 chooses torch's build
	@$(BIN)/yolofleet demo

check: lint types unit  ## Lint, types and unit tests (three minutes)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto -m "not slow and not system"

test: $(INSTALLED)  ## Lint, types, unit tests and tests of whole commands (twenty minutes, install included)
	@echo "1 of 2: lint, types and unit tests, about three minutes on two cores"
	@$(MAKE) --no-print-directory lint types unit
	@echo "2 of 2: tests that start Ray, MLflow and whole commands, about fifteen minutes on two cores"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "system and not slow" --durations=10

test-full: $(INSTALLED)  ## Every test that this machine can run, two at a time, with times and what was skipped
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations=0

test-newest: $(INSTALLED)  ## Run the tests of everything that uses Ray with the newest Ray (needs a package index)
	$(PYTHON) -m venv $(VENV)-newest
	cp -a $(VENV)/lib/python3*/site-packages/. $(VENV)-newest/lib/python3*/site-packages/
	$(VENV)-newest/bin/pip install --quiet --upgrade "ray[train,tune]"
	$(VENV)-newest/bin/python -c 'import ray; print("ray", ray.__version__)'
	PATH="$(CURDIR)/$(VENV)-newest/bin:$$PATH" $(VENV)-newest/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow" \
	    tests/core tests/cluster tests/search tests/training

# The others take long or need data: search_quality, soak, strategy_memory, all in benchmarks/training.
BENCHMARKS := average_precision checkpoint data_path deployed_form fetching inference loading matching model_profile \
              non_maximum_suppression object_storage resume_cost serving trial_startup

bench: $(INSTALLED)  ## Benchmarks against named peers
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

docs: $(INSTALLED)  ## Build the documentation as a site, in docs/_site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_site

mutants: $(INSTALLED)  ## Look for small mistakes in the package that no test notices (an hour)
	$(BIN)/python benchmarks/mutants.py

fuzz: $(INSTALLED)  ## 100,000 hostile inputs for every reader of untrusted data
	$(BIN)/python tests/fuzz/run.py --cases 100000 --jobs 2

clean:  ## Remove the environment, the demo and all caches
	rm -rf $(VENV) $(VENV)-newest demo dist docs/_site .cache build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
