"""Networks composed of other networks: exits, branches, reused classifiers, ensembles."""
