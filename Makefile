# Two commands for a fresh machine with Python 3.11 or newer:
#   make study   sets up, then trains, scores and fits the default study (runs/shapes/report/index.html)
#   make test    sets up, then runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# torch and what needs it live in tests marked `torch`; elsewhere this is the same suite.
PYTEST := $(BIN)/python -m pytest

.PHONY: study test test-full clean

# Two simulated devices: each core then does the elementwise work of half a batch
# (analysis/benchmarks). They say nothing about a GPU, which JAX uses if it has one.
study: $(STAMP)
	XLA_FLAGS="--xla_force_host_platform_device_count=2 $$XLA_FLAGS" $(BIN)/rfjax study --config=configs/shapes.py --workdir=runs/shapes

test: $(STAMP)
	$(PYTEST) -m "not full" -n 2 --dist worksteal

# What is long or needs a system service; leaves a dated record.
test-full: $(STAMP)
	$(BIN)/python analysis/record_tests.py -- $(PYTEST) -n 2 --dist worksteal

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("rfjax needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
