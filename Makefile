# Two commands set up everything on a machine that has only Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-triton test-generic test-browser test-faults fuzz lint format page page-check clean

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

# What a processor without x86's wide instructions runs: plain float32 products, torch's and numba's generic code.
test-generic: $(VENV)/.installed-dev
	HEREDITY_SCREEN=float32 ATEN_CPU_CAPABILITY=default NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES= $(BIN)/python -m pytest -q tests/kernels tests/sae

# The page in a real browser: chromium of the system's packages, driven by playwright, and axe where `make page` has installed it.
test-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -q -n 0 -m browser tests/browser -rs

fuzz: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/fuzz.py --cases 200000 --state .fuzz

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# The page of reports and of the server, from web/; needs node. What it builds is checked in.
page: web/node_modules/.package-lock.json
	cd web && npm run check && npm run build

page-check: page
	git diff --exit-code --stat -- src/heredity/show/page

web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	cd web && npm install --no-audit --no-fund

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .triton .pytest_cache .ruff_cache
