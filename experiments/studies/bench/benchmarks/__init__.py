"""The measurements of `make bench`, one module per section; `bench.py` runs them."""
