# Each target sets up what it needs; nothing else has to be installed but Python and make.
PYTHON ?= python3
# The environment lies outside the project, since `flwr run` looks at every file below the
# folder it runs, and `.venv` is a link there. VENV=DIR places it elsewhere, VENV=.venv inside.
HASH := $(or $(shell printf %s "$(CURDIR)" | cksum | cut -d' ' -f1),project)
CACHE := $(or $(FL_APP_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME)/fl-app),$(if $(HOME),$(HOME)/.cache/fl-app))
OUTSIDE := $(CACHE)/venvs/$(HASH)
VENV = $(if $(CACHE),$(OUTSIDE),.venv)
BIN := .venv/bin
# Named for the folder: a copy of it would otherwise work with the environment of the original.
STAMP := .venv/.installed-$(HASH)
INSIDE = [ "$(abspath $(VENV))" = "$(CURDIR)/.venv" ]
# An environment stays where it was placed; to ask for another place is an error.
PLACED = [ "$(origin VENV)" = file ] || if $(INSIDE); then [ ! -L .venv ]; else \
	[ "$$(readlink -f .venv)" = "$$(readlink -f "$(VENV)")" ]; fi || \
	{ echo "VENV: .venv is elsewhere already; make clean first" >&2; exit 1; }

export FLWR_TELEMETRY_ENABLED ?= 0

.PHONY: help install run serve test faults bench lint format clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make the environment, with the tested versions of everything
	@$(PLACED)

$(STAMP): pyproject.toml constraints.txt
	@[ -e .venv ] && { [ -e $(STAMP) ] || [ ! -L .venv ] || [ "$(origin VENV)" != file ]; } || rm -f .venv
	@[ -e .venv ] || { mkdir -p "$(VENV)"; $(INSIDE) || ln -s "$$(readlink -f "$(VENV)")" .venv; }
	@$(PLACED)
	@echo "Installing into .venv: PyTorch is large, this takes some minutes the first time."
	@$(PYTHON) -m venv "$$(readlink -f .venv)"
	@[ "$$(readlink -f .venv)" != "$$(readlink -f "$(OUTSIDE)")" ] || touch .venv/.placed-by-make
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(STAMP) ## train the default federation and draw its curves
	@$(BIN)/fl-app run $(ARGS)

serve: $(STAMP) ## serve the runs and their models at http://127.0.0.1:8000
	@$(BIN)/fl-app serve $(ARGS)

test: $(STAMP) ## run all tests, or those that ARGS choose
	@# What -m chooses may be such as wants the machine to itself.
	$(BIN)/pytest $(if $(filter -m,$(ARGS)),,-n 2 --dist loadfile --max-worker-restart 0) $(ARGS)

faults: $(STAMP) ## real nodes that fail, and twenty runs that are killed and resumed (40 minutes)
	$(BIN)/pytest -m "faults or kills" -o faulthandler_timeout=7200 $(ARGS)

bench: $(STAMP) ## measure against others: make bench ARGS='--data-dir DIR'
	$(BIN)/python -m benchmarks.bench $(ARGS)

lint: $(STAMP) ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment (of one placed by VENV the link alone) and all caches of tools
	@# A SuperLink that outlives its environment would take runs and never start them.
	@[ ! -e .venv ] || pkill -f "$$(readlink -f .venv)/[b]in/.*flower-super" || true
	[ ! -e .venv/.placed-by-make ] || rm -rf "$$(readlink -f .venv)"
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
