"""Weights that PyTorch saved, read without PyTorch and without running code."""
