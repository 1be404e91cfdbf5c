# Every target works on a machine with Python 3.11 (or newer) and make alone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test test-slow test-parity lint benchmark curve curve-llm train-tiny clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,tasks]'
	touch $@

test: .venv/installed lint
	$(BIN)/python -m pytest -n 2

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# Logits beside transformers' on torch: a large download, hence not in `make test`.
test-parity: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(BIN)/python -m pytest -m slow tests/test_parity.py tests/test_parity_heads.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Loading, reading and writing beside transformers' on torch, on this machine.
benchmark: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(BIN)/python -m tsi.experiments.benchmarks.models

curve: .venv/installed
	$(BIN)/tsi scale

curve-llm: .venv/installed
	$(BIN)/python -m tsi.experiments.curve_llm

train-tiny: .venv/installed
	$(BIN)/python -m tsi.experiments.train_tiny

clean:
	rm -rf .venv results build dist *.egg-info
