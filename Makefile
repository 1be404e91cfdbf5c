# Every target needs only Python 3.11 (or newer) and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test test-long test-slow test-lowest test-newest test-parity lint docs benchmark bench bench-served curve curve-chain curve-llm train-tiny clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,tasks,report,served,serve]'
	touch $@

SUITE := pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10

test: .venv/installed lint
	$(BIN)/python -m $(SUITE)

# The tests that compile most, which take twice as long as all others together.
test-long: .venv/installed
	$(BIN)/python -m $(SUITE) -m 'long and not slow'

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# A part of the suite at the lowest versions that pyproject.toml promises: it uses each
# of the packages. Types and style are checked with the pinned versions only.
LOWEST := $(patsubst %,tests/test_%.py,cli system_errors file_errors results tokenizer gguf hub \
	checkpoint tasks numpyro_kernel solve) \
	tests/test_train_tiny.py::test_a_checkpoint_of_another_model_is_refused
LOWEST_PYTHON ?= 3.11

# Another part on the newest Python that is installed, with the newest of everything.
NEWEST := $(patsubst %,tests/test_%.py,cli system_errors run cache engine value_head \
	numpyro_program) \
	tests/test_train_tiny.py::test_a_checkpoint_of_another_model_is_refused

.venv/uv-installed: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	touch $@

.venv-lowest/installed: pyproject.toml .venv/uv-installed
	$(BIN)/uv venv --quiet --clear --python $(LOWEST_PYTHON) .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python \
		--resolution lowest-direct --editable '.[test,tasks]'
	touch $@

test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest -n 2 -m 'not slow' $(LOWEST)

test-newest: .venv/uv-installed
	@newest="$$(.ci/newest_python)"; if [ -z "$$newest" ]; then \
		echo "test-newest is skipped: no Python above 3.11 is installed."; \
	else \
		set -e; \
		$(BIN)/uv venv --quiet --clear --python "$$newest" .venv-newest; \
		$(BIN)/uv pip install --quiet --python .venv-newest/bin/python \
			--editable '.[test,tasks]'; \
		.venv-newest/bin/python -c 'import sys, jax; \
			print("Python", sys.version.split()[0], "with jax", jax.__version__)'; \
		.venv-newest/bin/python -m pytest -n 2 -m 'not slow' $(NEWEST); \
	fi

# Logits compared with transformers on PyTorch: a large download, hence not in `make test`.
test-parity: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(BIN)/python -m pytest -m slow tests/test_parity.py tests/test_parity_heads.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in site/. Warnings, broken links and files that a browser
# would load from another site are errors.
docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python .ci/check_site.py site

.venv/docs-installed: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Loading, reading and writing, compared with transformers on PyTorch, on this machine.
benchmark: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(BIN)/python -m tsi.experiments.benchmarks.models

# Cost against N and lengths; then particles over a language model, compared with
# its_hub, llama.cpp and transformers if PEERS is an interpreter that has them.
bench: .venv/installed
	$(BIN)/python -m tsi.experiments.benchmarks.growth_table
	$(BIN)/python -m tsi.experiments.benchmarks.engine $(if $(PEERS),--peers $(PEERS))

# Methods over llama.cpp's server compared with its_hub, if LLAMA_SERVER is the path of
# llama-server and PEERS an interpreter that has its_hub.
bench-served: .venv/installed
	$(BIN)/python -m tsi.experiments.benchmarks.served_client
	$(BIN)/python -m tsi.experiments.benchmarks.served \
		$(if $(LLAMA_SERVER),--server $(LLAMA_SERVER)) $(if $(PEERS),--peers $(PEERS))

# Hard problems, each method at its best temperature on validation problems.
curve: .venv/installed
	$(BIN)/tsi reproduce headline

# Nine methods on the task chain, at one temperature and budgets up to 64.
curve-chain: .venv/installed
	$(BIN)/tsi scale

curve-llm: .venv/installed
	$(BIN)/python -m tsi.experiments.scaling.curve_llm

train-tiny: .venv/installed
	$(BIN)/python -m tsi.experiments.training.train_tiny

clean:
	rm -rf .venv .venv-lowest .venv-newest results site build dist *.egg-info
