"""A network whose deeper half exists several times over one shared trunk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.copies import separate
from jaxkd.models.staged import TorchNames
from jaxkd.models.torch_names import below, module_path
from jaxkd.types import Array, Network, Output


class Branched(nn.Module):
  """The layers of a network up to a stage, then several copies of its later ones.

  The trunk runs once. The variables are {"params": {"trunk": ..., "branches_0": ..., ...},
  "batch_stats": ...}, with only what runs: no later layers in the trunk, no early ones in the
  branches. Every copy starts from its own random values.

  Attributes:
    network: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    branches: how many copies, at least 1.
    from_stage: the last stage of the trunk.

  Source: Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, whose
  networks for small images share all but the last stage and have three branches.
  """

  network: nn.Module
  branches: int
  from_stage: str = "stage2"

  def setup(self) -> None:
    """Makes the copies.

    Raises:
      ConfigError: for a network that cannot be split, an unknown stage, or no branches.
    """
    _check(self)
    self.trunk = separate(self.network)
    for k in range(self.branches):
      setattr(self, _branch(k), separate(self.network))

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features, shallow to deep."""
    return tuple(self.network.stages)

  @property
  def torch_names(self) -> TorchNames:
    """How ONE's code calls the modules: as the network's, but for layer3_1 ... and classfier3_1 ...

    The numbers behind the underscore count the branches from 1. Empty for a network without names.
    """
    plain: TorchNames = getattr(self.network, "torch_names", ())
    if not plain:
      return ()

    def branch_path(match: re.Match[str]) -> str:
      layer, number, rest = match["layer"], int(match["branch"]), match["rest"] or ""
      name = "fc" if layer is None else f"layer{layer}{rest}"
      # The path of no variable stands for a name that the network does not know.
      return f"{_branch(number - 1)}/{module_path(name, plain) or name}"

    of_branches = r"(?:layer(?P<layer>\d+)|classi?fier\d+)_(?P<branch>\d+)(?P<rest>\..+)?"
    return ((of_branches, branch_path), *below("trunk", plain))

  def __call__(self, images: Array, train: bool = False) -> tuple[Output, ...]:
    """One Output per branch: its own logits and features, and the trunk's features.

    Raises:
      ConfigError: for a network that cannot be split, an unknown stage, or no branches.
    """
    shared = self.trunk.encode(images, train, self.from_stage)
    outputs = []
    for k in range(self.branches):
      own = getattr(self, _branch(k)).resume(
        shared.features[self.from_stage], self.from_stage, train
      )
      outputs.append(
        Output(
          own.logits,
          {**shared.features, **own.features},
          {**shared.preactivations, **own.preactivations},
        )
      )
    return tuple(outputs)


def branch_network(module: Branched, variables: Mapping[str, Any], index: int) -> Network:
  """One branch and the trunk as the plain network, under its own variable names.

  Args:
    module: the branched model.
    variables: its Flax variables.
    index: which branch, from 0.

  Returns:
    The plain network and its variables, the same arrays, not copies. In evaluation mode it computes
    what the branch does.

  Raises:
    ConfigError: for an index out of range, variables that lack the trunk or the branch, or a
      network that shares variables between its early and its later layers.
  """
  _check(module)
  if not 0 <= index < module.branches:
    raise ConfigError(f"branch {index}: there are branches 0 to {module.branches - 1}")
  merged: dict[tuple[str, ...], Any] = {}
  for part in ("trunk", _branch(index)):
    if part != "trunk" and part not in variables["params"]:
      raise ConfigError(f"variables: params/{part} is missing")
    for collection, tree in variables.items():
      for path, value in flatten_dict(dict(tree.get(part, {}))).items():
        if (collection, *path) in merged:
          name = "/".join((collection, *path))
          raise ConfigError(f"{name} is both the trunk's and the branch's: no plain network has it")
        merged[collection, *path] = value
  return Network(separate(module.network), unflatten_dict(merged))


def check_staged(network: nn.Module, role: str) -> None:
  """Raises a ConfigError unless the network has `stages`, `encode` and `resume`."""
  lacking = [name for name in ("stages", "encode", "resume") if not hasattr(network, name)]
  if lacking:
    raise ConfigError(
      f"{role}: a {type(network).__name__} has no {', no '.join(lacking)}: only a model with "
      "stages can be split"
    )


def _check(module: Branched) -> None:
  check_staged(module.network, "Branched")
  if module.branches < 1:
    raise ConfigError(f"Branched: branches is {module.branches}: it must be at least 1")
  if module.from_stage not in module.network.stages:
    raise unknown_name("from_stage", module.from_stage, module.network.stages)


def _branch(index: int) -> str:
  return f"branches_{index}"
