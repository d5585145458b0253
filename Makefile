# Each target sets up what it needs; nothing else has to be installed but Python and make.
PYTHON ?= python3
# Where the environment is to lie, if not below the project: `.venv` is then a link there.
VENV =
BIN := .venv/bin
STAMP := .venv/.installed
PLACED = [ -z "$(VENV)" ] || [ "$$(readlink -f .venv)" = "$$(readlink -f "$(VENV)")" ] || \
	{ echo "VENV: .venv is elsewhere already; make clean first" >&2; exit 1; }

export FLWR_TELEMETRY_ENABLED ?= 0

.PHONY: help install run serve test faults bench lint format clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with the tested versions of everything
	@$(PLACED)

$(STAMP): pyproject.toml constraints.txt
	@[ -z "$(VENV)" ] || [ -e .venv ] || { mkdir -p "$(VENV)" && ln -sfn "$(abspath $(VENV))" .venv; }
	@$(PLACED)
	@echo "Installing into .venv: PyTorch is large, this takes some minutes the first time."
	@$(PYTHON) -m venv "$$(readlink -f .venv || echo .venv)"
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

clean: ## remove the environment and all caches of tools
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
