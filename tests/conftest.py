"""Eight XLA devices on the CPU for every test, and strict rank promotion."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser):
  parser.addoption("--golden", default=None, help="folder of golden .npz files to check against")
