# Each target sets up what it needs; nothing else has to be installed but Python and make.
PYTHON ?= python3
# The environment lies outside the project, since `flwr run` looks at every file below the
# folder it runs, and `.venv` is a link there. VENV=DIR puts it elsewhere, VENV=.venv inside.
HASH := $(shell printf %s "$(CURDIR)" | cksum | cut -d' ' -f1)
OUTSIDE := $(or $(FL_APP_CACHE),$(HOME)/.cache/fl-app)/venvs/$(HASH)
VENV = $(if $(FL_APP_CACHE)$(HOME),$(OUTSIDE),.venv)
BIN := .venv/bin
STAMP := .venv/.installed
# One that is there already stays in use, unless another place was asked for.
PLACED = [ "$(origin VENV)" = file ] || [ "$$(readlink -f .venv)" = "$$(readlink -f "$(VENV)")" ] || \
	{ echo "VENV: .venv is elsewhere already; make clean first" >&2; exit 1; }

export FLWR_TELEMETRY_ENABLED ?= 0

.PHONY: help install run serve test faults bench lint format clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make the environment, with the tested versions of everything
	@$(PLACED)

$(STAMP): pyproject.toml constraints.txt
	@[ -e .venv ] || { mkdir -p "$(VENV)" && { [ "$(VENV)" = .venv ] || ln -sfn "$$(readlink -f "$(VENV)")" .venv; }; }
	@$(PLACED)
	@echo "Installing into .venv: PyTorch is large, this takes some minutes the first time."
	@$(PYTHON) -m venv "$$(readlink -f .venv)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(STAMP) ## train the default federation and draw its curves
	@$(BIN)/fl-app run $(ARGS)

serve: $(STAMP) ## serve the runs and their models at http://127.0.0.1:8000
	@$(BIN)/fl-app serve $(ARGS)

test: $(STAMP) ## run all tests
	$(BIN)/pytest $(ARGS)

faults: $(STAMP) ## real nodes that fail, and twenty runs that are killed and resumed (40 minutes)
	$(BIN)/pytest -m "faults or kills" $(ARGS)

bench: $(STAMP) ## measure against others: make bench ARGS='--data-dir DIR'
	$(BIN)/python -m benchmarks.bench $(ARGS)

lint: $(STAMP) ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment (not one placed by VENV) and all caches of tools
	rm -rf "$(OUTSIDE)" .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
