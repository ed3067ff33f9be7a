# Every task of the project. `make help` lists them; each works alone on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Small networks lose time to thread hand-over; the training code sets what it wants for itself.
export PYTHONHASHSEED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-learning test-slow test-oracle check format bench bench-forecasting reference clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP) ## Create .venv and install the project with its tested versions

demo: $(STAMP) ## Train SAC on the S&P 500, print the out-of-sample table, write runs/demo/
	$(BIN)/python -m tradingbots demo

test: $(STAMP) ## Run the default tests (under 8 minutes on two cores)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not learning and not slow"

test-learning: $(STAMP) ## Train agents to their known optima over several seeds (long)
	$(BIN)/python -m pytest -q -m learning

test-slow: $(STAMP) ## Run the long contract tests (a training killed twenty times)
	$(BIN)/python -m pytest -q -m slow

test-oracle: $(STAMP) ## Compare with vectorbt in an environment of its own (.venv-oracle)
	$(PYTHON) -m venv .venv-oracle
	.venv-oracle/bin/python -m pip install --quiet -c requirements/constraints.txt -e . pytest vectorbt
	.venv-oracle/bin/python -m pytest -q -W default tests/ml/test_vectorbt_oracle.py

check: $(STAMP) ## Format, lint, types and import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Run the benchmarks (parity is checked before anything is timed; two hours or so)
	$(BIN)/python benchmarks/environment.py
	$(BIN)/python benchmarks/agents.py
	$(BIN)/python benchmarks/regret.py

bench-forecasting: ## Compare predictors with neuralforecast in an environment of its own (.venv-forecasting; ten minutes)
	$(PYTHON) -m venv .venv-forecasting
# torch by itself first: the open range of neuralforecast could take another build, with gigabytes for GPUs.
	.venv-forecasting/bin/python -m pip install --quiet torch==2.13.0
	.venv-forecasting/bin/python -m pip install --quiet -c requirements/constraints.txt -e . neuralforecast==3.3.0
	.venv-forecasting/bin/python benchmarks/forecasting.py --resume

reference: $(STAMP) ## Score every agent on public tasks, five seeds (hours; goes on where it was interrupted)
	$(BIN)/python benchmarks/reference.py --resume

clean: ## Remove the virtual environments and caches
	rm -rf $(VENV) .venv-oracle .venv-forecasting .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
