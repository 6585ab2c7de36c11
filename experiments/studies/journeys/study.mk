# Ten ways into the library with inputs of one's own, each in a new environment (a quarter of an hour).

.PHONY: journeys

journeys: $(INSTALLED)
	$(BIN)/python experiments/studies/journeys/journeys.py --output experiments/studies/journeys/results/journeys.md
