VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# First and by its version, so that nothing that follows brings another; `TORCH=` gives another build.
TORCH = torch==2.13.0
FAST = not slow and not gpu and not network

.PHONY: help demo test test-all lint types wheel clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Made again when what it was made from changes.
$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev,report,synthesis,train]"
	touch $@

demo: $(VENV)/.installed  ## Install, then score BM25 and all-MiniLM on the embedded benchmark, offline
	$(BIN)/reasonembed demo

test: $(VENV)/.installed  ## Install, then run the fast tests
	$(BIN)/python -m pytest -m "$(FAST)" --numprocesses 2 --dist worksteal

test-all: $(VENV)/.installed  ## Run every test that needs neither a GPU nor the network
	$(BIN)/python -m pytest -m "not gpu and not network" --numprocesses 2 --dist worksteal

lint: $(VENV)/.installed  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed  ## Check types
	$(BIN)/mypy

wheel: $(VENV)/.installed  ## Build the wheel and the source distribution
	$(BIN)/python -m build --outdir dist

clean:  ## Remove what was built, and the environment
	rm -rf $(VENV) build dist results *.egg-info .mypy_cache .pytest_cache .ruff_cache
