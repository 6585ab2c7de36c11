"""What `make bench` measures, one module per section; `experiments/bench.py` runs them."""
