VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# First and by its version, so that nothing that follows brings another; `TORCH=` gives another build.
TORCH = torch==2.13.0
FAST = not slow and not gpu and not network
EXTRAS = demo,dev,distributed,docs,report,synthesis,train

.PHONY: help demo test test-all server test-lowest test-newest lint types docs wheel clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Made again when what it was made from changes.
$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

demo: $(VENV)/.installed  ## Install, then score BM25 and all-MiniLM on the embedded benchmark, offline
	$(BIN)/reasonembed demo

test: $(VENV)/.installed  ## Install, then run the fast tests
	$(BIN)/python -m pytest -m "$(FAST)" --numprocesses 2 --dist worksteal

test-all: $(VENV)/.installed  ## Run every test that needs neither a GPU nor the network
	$(BIN)/python -m pytest -m "not gpu and not network" --numprocesses 2 --dist worksteal

server:  ## Install infinity, a server of embeddings that a slow test asks, into build/infinity
	$(PYTHON) -m venv --clear build/infinity
	build/infinity/bin/python -m pip install --quiet $(TORCH)
	build/infinity/bin/python -m pip install --quiet "infinity-emb[torch,server]==0.0.78"

test-lowest:  ## Run the fast tests with the lowest versions that setup.cfg allows, in $(VENV)-lowest
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip packaging
	$(VENV)-lowest/bin/python .ci/lowest.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet $(TORCH)
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/constraints.txt \
		--editable ".[$(EXTRAS)]"
	$(VENV)-lowest/bin/python -m pytest -m "$(FAST)" --numprocesses 2 --dist worksteal

test-newest:  ## Run the fast tests with the newest versions that setup.cfg allows, in $(VENV)-newest
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-newest/bin/python -m pip install --quiet $(TORCH)
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager $(TORCH) \
		--editable ".[$(EXTRAS)]"
	$(VENV)-newest/bin/python -m pytest -m "$(FAST)" --numprocesses 2 --dist worksteal

lint: $(VENV)/.installed  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed  ## Check types
	$(BIN)/mypy

# Laid out as in the repository, so that a link that works there works on the site.
SITE = README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md CITATION.cff LICENSE setup.cfg docs tasks/mini/README.md
docs: $(VENV)/.installed  ## Build the site into build/site; a warning, so a broken link, is an error
	rm -rf build/docs build/site
	mkdir -p build/docs
	tar -cf - $(SITE) | tar -xf - -C build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel: $(VENV)/.installed  ## Build the wheel and the source distribution
	$(BIN)/python -m build --outdir dist

clean:  ## Remove what was built, and the environment
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest build dist results *.egg-info .mypy_cache .pytest_cache .ruff_cache
