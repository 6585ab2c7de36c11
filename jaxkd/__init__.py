"""jaxkd: knowledge distillation in functional JAX and Flax.

Packages, each imported on its own:
  losses: loss functions, which need jax alone.
  models, adapters: networks, and trainable modules between two networks.
  methods: schemes and the registry of methods.
  train, cache, runtime: training steps and checkpoints, cached targets, devices and processes.
  data, evaluate, export, report: data sets, metrics, bundles and StableHLO, tables and plots.
  experiment: experiments from a config.
"""

__version__ = "0.1.0"
