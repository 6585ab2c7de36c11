"""Networks made of other networks: with exits, branches, reused classifiers; ensembles."""
