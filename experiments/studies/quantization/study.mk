# Students of 8 and 4 bits, rounded afterwards and trained for it, five seeds each (eight minutes on digits).

.PHONY: quantization

quantization: $(INSTALLED)
	$(BIN)/python experiments/studies/quantization/quantization.py --config configs/digits.py:kd --workdir runs/quantization/digits --output experiments/studies/quantization/results/digits.md
