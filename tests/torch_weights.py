"""PyTorch state dicts of the golden models by rule, and MSDNet-PyTorch's argument names."""

from __future__ import annotations

import hashlib

import numpy as np

# Argument of MSDNet-PyTorch -> field of MSDNet.
_MSDNET_FIELDS = {
  "nBlocks": "blocks",
  "stepmode": "step_mode",
  "nChannels": "channels",
  "growthRate": "growth_rate",
  "grFactor": "growth_factors",
  "bnFactor": "bottleneck_factors",
  "nScales": "scales",
}


def regenerate(spec: list[tuple[str, list[int]]], seed: int) -> dict[str, np.ndarray]:
  """The state dict by the rule of tests/golden/models/README.md, in PyTorch's layout."""
  rng = np.random.default_rng(seed)
  state = {}
  for name, shape in spec:
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
      continue
    if len(shape) > 1:
      value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif leaf in ("weight", "running_var", "gamma"):
      value = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("bias", "running_mean"):
      value = rng.normal(0, 0.1, shape)
    else:
      raise ValueError(f"no rule for {name} {shape}")
    state[name] = value.astype("<f4")
  return state


def msdnet_fields(args: dict[str, object]) -> dict[str, object]:
  """The fields of jaxkd's MSDNet for MSDNet-PyTorch's arguments, without the number of classes."""
  return {_MSDNET_FIELDS.get(key, key): value for key, value in args.items() if key != "data"}


def digest(state: dict[str, np.ndarray]) -> str:
  return hashlib.sha256(b"".join(value.tobytes() for value in state.values())).hexdigest()
