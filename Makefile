# Two commands: `make demo` shows the main job, `make test` runs the whole suite.
# Nothing is needed before them but Python 3.11 or later, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

$(BIN)/gradsense: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,edge,fleet]'
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

# With IOT23=folder and ZEEK=folder also those on real data; with FLOWER=python of an environment
# that has flwr also Flower's.
bench: $(VENV)/.bench  ## the figures of docs/benchmarks.md
	@mkdir -p bench
	$(BIN)/python benchmarks/cli/start_up.py
	$(BIN)/python benchmarks/parser.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/simulator.py
	$(BIN)/python benchmarks/thousand.py
	$(BIN)/python benchmarks/network.py
	$(BIN)/python -m pytest -s tests/test_fleet_kills.py --kills 200
	$(BIN)/python benchmarks/transport/compare.py --output bench/transport.jsonl \
		$(if $(FLOWER),--flower-python $(FLOWER))
	$(BIN)/python benchmarks/transport/plot.py bench/transport.jsonl bench/transport.svg
ifdef IOT23
	$(BIN)/gradsense compare --data $(IOT23) --rounds 10 --seeds 3 --out bench/table3 --resume \
		--algorithms fedavg,fedprox,scaffold,fedavgm,fedadagrad,fedyogi,fedadam,fedbuff,gsfs-paper,gsfs-tune,gsfs
	$(BIN)/python benchmarks/ablation.py --data $(IOT23) --out bench/ablation --resume \
		--plot bench/ablation.png
	$(BIN)/python benchmarks/sensing.py --data $(IOT23) --plot bench/sensing.png
	$(BIN)/python benchmarks/novelty.py --data $(IOT23) --plot bench/novelty.png
	$(BIN)/python benchmarks/leave_one_out.py --data $(IOT23)
	$(BIN)/python benchmarks/joining.py --data $(IOT23)
	$(BIN)/python benchmarks/fleet.py --data $(IOT23)
	$(BIN)/python benchmarks/edge.py --data $(IOT23)
	$(BIN)/python benchmarks/hybrid.py --data $(IOT23) --plot bench/hybrid.png
endif
ifdef ZEEK
	$(BIN)/python benchmarks/heldout.py --data $(ZEEK) --iot23 $(IOT23) --plot bench/heldout.png
endif

clean:
	rm -rf $(VENV) demo bench
