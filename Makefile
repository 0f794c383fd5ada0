# `make train` and `make test` need nothing but Python 3.10+ and a package index: each makes the
# virtual environment if it is missing or older than what it is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PORT ?= 5000
MLRUNS ?= $(CURDIR)/mlruns
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt


# Every command of the tests would compile src anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup train certify advise sweep report sync ui test test-slow check docs benchmark gpu-bundle clean

help: ## say what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/.installed ## make the virtual environment

train: $(VENV)/.installed ## train; make train ARGS="trainer.step_size=16"
	$(BIN)/python -m src.train $(ARGS)

certify: $(VENV)/.installed ## prove the gradient of your own model; make certify ARGS="model=cnn"
	$(BIN)/python -m src.certify $(ARGS)

advise: $(VENV)/.installed ## say which step_size pays, and why; make advise ARGS="experiment=digits_cnn"
	$(BIN)/python -m src.advise $(ARGS)

sweep: $(VENV)/.installed ## search step_size; make sweep ARGS="experiment=digits_cnn"
	$(BIN)/python -m src.train --multirun sweep=step_size $(ARGS)

report: $(VENV)/.installed ## draw a sweep's report again; make report STUDY=step_size_digits_mlp
	$(BIN)/python -m src.report $(if $(STUDY),"$(STUDY)") $(ARGS)

sync: $(VENV)/.installed ## deliver to MLflow what it has not of a run; make sync RUN=folder
	$(BIN)/python -m src.sync $(if $(RUN),"$(RUN)") $(ARGS)

ui: $(VENV)/.installed ## serve MLflow's pages on this machine alone; PORT=5000
	@echo "compare the runs at http://127.0.0.1:$(PORT)/#/experiments/1?workflowType=machine_learning"
	@echo "(Ctrl-C ends it)"
	$(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri "sqlite:///$(MLRUNS)/mlflow.db" \
	  --default-artifact-root "$(MLRUNS)/artifacts"

test: $(VENV)/.installed-dev ## run the tests (a few minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-engines ## train each recipe to its quality, open the UI, sweep on engines (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=20 -m slow $(ARGS)

check: $(VENV)/.installed-dev ## ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs ## build the site of docs/ into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

benchmark: $(VENV)/.installed-benchmarks ## measure throughput beside Lightning, Fabric and Accelerate
	$(BIN)/python -m benchmarks.throughput $(ARGS)

gpu-bundle: $(VENV)/.installed-dev ## collect the wheels for gpu/run.sh on a machine without a network
	$(BIN)/python gpu/bundle.py --out gpu/bundle $(ARGS)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.installed-benchmarks: $(VENV)/.installed-dev
	$(PIP) -e ".[benchmarks]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e ".[docs]"
	@touch $@

$(VENV)/.installed-engines: $(VENV)/.installed-benchmarks
	$(PIP) -e ".[joblib,slurm,ray]"
	@touch $@

clean: ## remove the virtual environment
	rm -rf $(VENV)
