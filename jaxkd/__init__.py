"""jaxkd: knowledge distillation in functional JAX and Flax.

Packages, each imported on its own:
  losses: loss functions, which need jax alone.
  models, adapters: networks, and trainable modules between two networks.
  methods: schemes and the registry of methods.
  train, cache, runtime: training steps and checkpoints, cached targets, devices and processes.
  data, evaluate, export, report: data sets, metrics, bundles and StableHLO, tables and plots.
  experiment: experiments from a config.

`jaxkd.distill` trains a student in one call.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jaxkd.experiment.distill import Result as Result
  from jaxkd.experiment.distill import distill as distill

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
  """Import `distill` and its `Result` on first use: they need the experiments' packages."""
  if name in ("distill", "Result"):
    from jaxkd.experiment import distill as module

    return getattr(module, name)
  raise AttributeError(f"module 'jaxkd' has no attribute {name!r}")
