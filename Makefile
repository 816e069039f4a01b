# The commands of the book. `make run` and `make test` each work alone on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The chapters run in their own folder, so relative folders are made absolute here.
ifneq ($(strip $(MINIAI_DATA)),)
export MINIAI_DATA := $(abspath $(MINIAI_DATA))
endif
ifneq ($(strip $(MINIAI_HOME)),)
export MINIAI_HOME := $(abspath $(MINIAI_HOME))
endif

.PHONY: help setup run test bench export docs clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1	/' | expand -t 16

setup: $(VENV)/.ready ## make .venv with the tested versions of everything (does nothing the second time)

$(VENV)/.ready: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "miniai needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11 setup")'
	@echo "== installing the tested versions into $(VENV) (once, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

run: setup ## execute the whole book and watch it
	@$(BIN)/miniai run

test: setup ## everything that must hold: code in step, clean, lint, imports, all chapters, the command line
	@$(BIN)/python tests/check.py

bench: setup ## the benchmarks, side by side with their rivals; tables, JSON and plots into bench/
	@$(BIN)/miniai bench matmul
	@$(BIN)/miniai bench cluster
	@$(BIN)/miniai bench backprop
	@$(BIN)/miniai bench loaders
	@$(BIN)/miniai bench learner
	@$(BIN)/miniai bench samplers
	@$(BIN)/miniai bench pipeline

export: setup ## after changing a chapter: write the package anew and clean the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

docs: setup ## the book as pages to read, in _docs/
	@$(BIN)/miniai run --html _docs

clean: ## remove what can be made again, except .venv
	@rm -rf _docs _proc bench build dist *.egg-info .pytest_cache .ruff_cache
	@find miniai nbs tests -name __pycache__ -type d -prune -exec rm -rf {} +
