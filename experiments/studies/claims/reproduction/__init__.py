"""The papers' claims: the runs that each compares, and the results."""
