# Our times over others', measured side by side: losses, steps, whole runs and cohorts; FLOPs over the
# fewest that suffice. PyTorch and torchdistill are needed by this study and `make torch` alone.

.PHONY: bench

BENCH := experiments/studies/bench

bench: $(INSTALLED)
	$(install_torch)
	$(BIN)/pip install --quiet --no-deps torchdistill==1.1.5
	$(BIN)/python $(BENCH)/bench.py --output $(BENCH)/results/bench.json
	$(BIN)/python $(BENCH)/bench_profiles.py --output $(BENCH)/results/bench_profiles.md
