# Two commands set up everything on a machine that has only Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-triton test-faults fuzz lint format clean

demo: $(VENV)/.installed
	$(BIN)/heredity demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not network and not faults"

# Every fault: what is promised, and what was measured.
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 0 -m 'faults or not faults' tests/faults

# The GPU's kernels on a machine without one, in Triton's interpreter, which needs an older numpy for its loops.
test-triton: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target .triton --no-deps triton 'numpy<2.4'
	PYTHONPATH=.triton TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/kernels/test_triton_forms.py

fuzz: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/fuzz.py --cases 200000 --state .fuzz

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .triton .pytest_cache .ruff_cache
