"""The papers' claims: which runs each compares, and what the runs say of it."""
