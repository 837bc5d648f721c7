#!/bin/sh
# All that a GPU is to be measured at, in one call of at most eight minutes; see gpu.py. Needs the package's dependencies
# and a torch with CUDA; without a CUDA device it says so and writes nothing. PYTHON: the interpreter to use.
cd "$(dirname "$0")/.." || exit 1
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
