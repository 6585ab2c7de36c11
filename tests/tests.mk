# Tests that need PyTorch, or take long; included by the root Makefile.

.PHONY: torch mutations

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
