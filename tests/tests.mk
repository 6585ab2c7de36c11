# Tests that need PyTorch, or take long; included by the root Makefile.

.PHONY: torch mutations test-oldest test-newest onnx-parity

# A network that a plain PyTorch script trained is as accurate here. An installed 2.13.0 of any build is
# kept. Otherwise pip takes the CPU build (200 MB) from PyTorch's own index or from a folder that pip
# knows (PIP_FIND_LINKS); where neither has it, the usual registry's build, which on Linux includes CUDA
# (3 GB). The first line installs torch alone, so that an unreachable index is waited for once.
TORCH := torch==2.13.0
CPU_BUILDS := https://download.pytorch.org/whl/cpu
define install_torch
	$(BIN)/pip install -qq --retries 1 --no-deps --extra-index-url $(CPU_BUILDS) $(TORCH)
	$(BIN)/pip install --quiet $(TORCH)
endef

torch: $(INSTALLED)
	$(install_torch)
	$(BIN)/python -m pytest tests/with_torch -s

# Break the losses on purpose, one way at a time, and list the test that fails (about ten minutes).
mutations: $(INSTALLED)
	$(BIN)/python -m tests.mutate --output tests/mutations.md

# The tests on the oldest jax that pyproject.toml admits, and on the newest versions of everything, for
# which NEWEST_PYTHON names an interpreter; jax from 0.11 on needs Python 3.12 or newer.
NEWEST_PYTHON ?= python3.13
test-oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install --quiet --disable-pip-version-check "jax==0.8.0" --editable ".[experiments,test]"
	build/oldest/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-newest:
	$(NEWEST_PYTHON) -m venv build/newest
	build/newest/bin/pip install --quiet --disable-pip-version-check --upgrade --editable ".[experiments,test]"
	build/newest/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Agreement of ONNX files with jax by architecture, in tests/onnx_parity.md (about a quarter of an hour).
onnx-parity: $(INSTALLED)
	$(BIN)/python -m tests.onnx_parity
