# The papers' claims on real data, over five or six seeds (an hour on two cores).

.PHONY: claims claims-quick claims-search claims-why

CLAIMS := $(BIN)/python experiments/studies/claims/claims.py
CLAIMS_RESULTS := experiments/studies/claims/results

claims: $(INSTALLED)
	$(CLAIMS) --workdir runs/claims --output $(CLAIMS_RESULTS)

# Every run in short, which shows that all of them work and nothing else.
claims-quick: $(INSTALLED)
	$(CLAIMS) --workdir runs/claims-quick --quick

# The choice of hyperparameters, by validation.
claims-search: $(INSTALLED)
	$(CLAIMS) --workdir runs/claims --search --output $(CLAIMS_RESULTS)

# Why some claims are contradicted, by validation.
claims-why: $(INSTALLED)
	$(CLAIMS) --workdir runs/claims --why --output $(CLAIMS_RESULTS)
