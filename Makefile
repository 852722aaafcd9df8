# Nothing is needed before these commands but Python 3.11 or later, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable
# Where Debian has Mosquitto, which is not in everybody's PATH.
BROKER := PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help demo test test-fast lint bench broker clean
.DEFAULT_GOAL := help

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

$(BIN)/gradsense: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[train,edge,fleet]'
	@touch $@

$(VENV)/.test: pyproject.toml $(BIN)/gradsense
	$(INSTALL) '.[test,lint]'
	@touch $@

$(VENV)/.bench: pyproject.toml $(BIN)/gradsense
	$(INSTALL) '.[bench]'
	@touch $@

demo: $(BIN)/gradsense  ## the whole story on synthetic traffic: train, compare, report, detect
	$(BIN)/gradsense demo --out demo

test: $(VENV)/.test broker  ## every test
	$(PYTEST)

test-fast: $(VENV)/.test  ## in a minute: without what is slow, and what needs a broker or torch
	$(PYTEST) -m "not slow and not broker and not torch"

lint: $(VENV)/.test  ## ruff over everything, mypy --strict over src and benchmarks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

broker:
	@$(BROKER) || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends mosquitto; } || echo \
		'Mosquitto is not installed: tests that need a broker will be skipped.' \
		'Install it: sudo apt-get install mosquitto' >&2

# With IOT23=folder and ZEEK=folder also those on real data; with FLOWER=python of an environment
# that has flwr also Flower's.
bench: $(VENV)/.bench broker  ## the figures of docs/benchmarks.md (hours)
	@mkdir -p bench
	$(BIN)/python -m benchmarks.cli.start_up
	$(BIN)/python -m benchmarks.data.parser
	$(BIN)/python -m benchmarks.federated.training
	$(BIN)/python -m benchmarks.federated.simulator
	$(BIN)/python -m benchmarks.fleet.thousand
	$(BIN)/python -m benchmarks.fleet.network
	$(BIN)/python -m benchmarks.fleet.hostile
	$(BIN)/python -m pytest -s tests/test_fleet_kills.py --kills 200
	$(BIN)/python -m benchmarks.transport.compare --output bench/transport.jsonl \
		--plot bench/transport.svg $(if $(FLOWER),--flower-python $(FLOWER))
ifdef IOT23
	$(BIN)/gradsense compare --data $(IOT23) --rounds 10 --seeds 3 --out bench/table3 --resume \
		--algorithms fedavg,fedprox,scaffold,fedavgm,fedadagrad,fedyogi,fedadam,fedbuff,gsfs-paper,gsfs-tune,gsfs
	$(BIN)/python -m benchmarks.federated.ablation --data $(IOT23) --out bench/ablation --resume \
		--plot bench/ablation.png
	$(BIN)/python -m benchmarks.federated.leave_one_out --data $(IOT23)
	$(BIN)/python -m benchmarks.federated.joining --data $(IOT23)
	$(BIN)/python -m benchmarks.federated.poisoning --data $(IOT23)
	$(BIN)/python -m benchmarks.gateway.speed --data $(IOT23)
endif
ifdef ZEEK
	$(BIN)/python -m benchmarks.gateway.heldout --data $(ZEEK) --iot23 $(IOT23)
endif

clean:  ## remove what was made here
	rm -rf $(VENV) demo bench
