# Two commands for a fresh machine with Python 3.11 or newer:
#   make study   sets up, then trains, scores and fits the default study (runs/shapes/report/index.html)
#   make test    sets up, then runs the tests
PYTHON ?= python3
comma := ,
VENV ?= .venv
BIN := $(VENV)/bin
# The comparisons with PyTorch are a set of their own. TORCH=no installs and runs all the others, for
# a Python that has no small build of it.
TORCH ?= yes
# One test compiles for a TPU slice, which needs no TPU but its compiler, a download of 210 MB. LIBTPU=no
# leaves both out, where that is too much, or where there is none: it is made for Linux on x86-64.
LIBTPU ?= yes
# Full tests write with W&B and MLflow, a download of 60 MB. TRACKERS=no leaves both out.
TRACKERS ?= yes
TEST_EXTRAS := [test$(if $(filter no,$(TORCH)),,$(comma)torch)$(if $(filter no,$(LIBTPU)),,$(comma)tpu-plan)$(if $(filter no,$(TRACKERS)),,$(comma)trackers)]
PYTEST := $(BIN)/python -m pytest $(if $(filter no,$(TORCH)),--ignore-glob="*/with_torch") \
	$(if $(filter no,$(LIBTPU)),--ignore=tests/plan/with_libtpu) \
	$(if $(filter no,$(TRACKERS)),--ignore=tests/trackers/with_libraries)
INSTALLED := $(VENV)/.installed
TESTS_INSTALLED := $(VENV)/.installed-tests-torch-$(TORCH)-libtpu-$(LIBTPU)-trackers-$(TRACKERS)

.PHONY: study test test-full test-newest wheel-test format lint clean

# Two simulated devices: each core then does the elementwise work of half a batch
# (analysis/benchmarks). They say nothing about a GPU, which JAX uses if it has one.
study: $(INSTALLED)
	XLA_FLAGS="--xla_force_host_platform_device_count=2 $$XLA_FLAGS" $(BIN)/rfjax study --config=configs/shapes.py --workdir=runs/shapes

test: $(TESTS_INSTALLED)
	$(PYTEST) -m "not full" -n 2 --dist worksteal

# rfjax without a checkout: a wheel, built, installed apart and used from an empty folder.
wheel-test: $(INSTALLED)
	.ci/wheel $(BIN)/python

# What the newest JAX, Flax and Orbax would break: the quick tests in an environment of its own, where the upper bounds
# of these three are lifted. No part of CI. make test-newest PYTHON=python3.12
NEWEST := .venv-newest/bin/python
test-newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	$(NEWEST) -m pip install --quiet --upgrade pip
	$(NEWEST) analysis/lift_bounds.py jax flax orbax-checkpoint >.venv-newest/requirements.txt
	$(NEWEST) -m pip install --quiet --requirement .venv-newest/requirements.txt
	$(NEWEST) -m pip install --quiet --no-deps -e .
	$(NEWEST) -m pip list 2>/dev/null | grep -E '^(jax|jaxlib|flax|orbax-checkpoint) '
	$(NEWEST) -m pytest -m "not full" -n 2 --dist worksteal --tb=line -r fE \
		--ignore-glob="*/with_torch" --ignore=tests/plan/with_libtpu --ignore=tests/trackers/with_libraries

# What is long or needs a system service; leaves a dated row in analysis/test_records.md.
test-full: $(TESTS_INSTALLED)
	$(BIN)/python analysis/record_tests.py -- $(PYTEST) -n 2 --dist worksteal

format: $(TESTS_INSTALLED)
	$(BIN)/ruff format .

lint: $(TESTS_INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("rfjax needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(TESTS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.$(TEST_EXTRAS)'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
