"""Eight XLA devices on the CPU for every test, and strict rank promotion."""

import os

import hypothesis
import jax

# Compiling is most of what tests do, and these emitters compile a quarter faster.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser):
  parser.addoption("--golden", default=None, help="folder of golden .npz files to check against")
