# Two commands: `make demo` shows the main job, `make test` runs the whole suite.
# Nothing is needed before them but Python 3.11 or later, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

$(BIN)/gradsense: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: pyproject.toml $(BIN)/gradsense
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

$(VENV)/.bench: pyproject.toml $(BIN)/gradsense
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

demo: $(BIN)/gradsense  ## synthetic fleet, three strategies, table, report, a sample log read
	$(BIN)/gradsense demo --out demo

test: $(VENV)/.test  ## the whole suite
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench  ## the figures of docs/benchmarks.md that do not need IoT-23
	$(BIN)/python benchmarks/parser.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/simulator.py

clean:
	rm -rf $(VENV) demo
