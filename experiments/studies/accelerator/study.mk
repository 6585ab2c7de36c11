# Parity and property tests, and the step of a ResNet-32x4 and 8x4, on the GPUs or TPUs of this machine,
# if it has any; .venv must hold jax's package for them (docs/devices.md).

.PHONY: accelerator-check

accelerator-check: $(INSTALLED)
	$(BIN)/python experiments/studies/accelerator/accelerator_check.py
