# Runs that are interrupted, damaged or starved, and their outcomes as a table (a quarter of an hour).

.PHONY: faults

faults: $(INSTALLED)
	$(BIN)/python experiments/studies/faults/faults.py --output experiments/studies/faults/results/faults.md
