# `make run` trains a teacher and its students on digits, `make test` runs all checks; both install first.
# The targets of the studies are in experiments/studies/*/study.mk, further test targets in tests/tests.mk.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WORKDIR ?= runs/digits-simkd
PYTEST := $(BIN)/python -m pytest -n auto

.PHONY: run test test-long lint numerics parity docs lock clean

run: $(INSTALLED)
	$(BIN)/python experiments/train.py --config configs/digits.py:simkd --workdir $(WORKDIR)

test: lint
	$(PYTEST) --dist loadfile --no-loadscope-reorder

# The tests that do not fit into ten minutes with the others.
test-long: $(INSTALLED)
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m long tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Compiled float32 against float64, for every loss and every method's update (half an hour).
numerics: $(INSTALLED)
	$(PYTEST) -m numerics tests/numerics

# Agreement with the values of the published code, by method and by model.
parity: $(INSTALLED)
	$(PYTEST) -m 'long or not long' --float32 tests/test_golden.py tests/test_golden_models.py

# The pages of docs/ as HTML, in build/docs. A warning is an error.
docs: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --requirement requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Renew requirements.txt: the newest versions that pyproject.toml admits, pinned.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check ".[experiments,test]"
	echo "# Written by 'make lock' from pyproject.toml; for Python 3.11." > requirements.txt
	build/lock/bin/pip freeze --exclude jaxkd-distillation >> requirements.txt

clean:
	rm -rf $(VENV) build *.egg-info docs/methods docs/api

include tests/tests.mk $(wildcard experiments/studies/*/study.mk)
