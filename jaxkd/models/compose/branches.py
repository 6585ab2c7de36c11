"""Networks with several branches on a shared trunk, and their gated ensemble."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses.dml import gated_logits
from jaxkd.models.compose.ensemble import nested
from jaxkd.models.layers import separate
from jaxkd.models.staged import TorchNames
from jaxkd.models.torch.load import below, module_path
from jaxkd.types import Array, Network, Output


class GatedBranches(nn.Module):
  """The branches' logits, weighted image by image by a gate.

  The variables are {"params": {"branched": ..., "gate": ...}, ...}.

  Attributes:
    branched: a Branched model.
    gate: `__call__(features, train) -> (B, branches)`, such as jaxkd.adapters.Gate.
    gate_stage: the stage of the trunk that the gate sees.

  Source: Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018.
  """

  branched: nn.Module
  gate: nn.Module
  gate_stage: str = "stage2"

  @property
  def torch_names(self) -> TorchNames:
    """How ONE's code calls the modules: as Branched says, and control_v1 and bn_v1 of the gate."""
    branched: TorchNames = getattr(self.branched, "torch_names", ())
    gate = ((r"control_v1", "gate/linear"), (r"bn_v1", "gate/bn"))
    return (*gate, *below("branched", branched)) if branched else ()

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Logits (B, classes), sum over the branches of gate * logits, without features.

    Raises:
      ConfigError: for an unknown stage, or a gate of another number of branches.
    """
    outputs = self.branched(images, train)
    features = outputs[0].features
    if self.gate_stage not in features:
      raise unknown_name("gate_stage", self.gate_stage, features)
    gates = self.gate(features[self.gate_stage], train)
    return Output(gated_logits(outputs, gates))


def gated_branches(
  branched: Branched,
  gate: nn.Module,
  branched_variables: Mapping[str, Any],
  gate_variables: Mapping[str, Any],
  *,
  gate_stage: str | None = None,
) -> Network:
  """ONE's gated ensemble as one network.

  Args:
    branched: the branched model.
    gate: as in GatedBranches.
    branched_variables: its Flax variables.
    gate_variables: the gate's.
    gate_stage: the stage that the gate sees; None takes the last one of the trunk.

  Returns:
    The GatedBranches and its variables, the same arrays, not copies.

  Raises:
    ConfigError: for a stage that is not the trunk's.
  """
  last = branched.stages.index(branched.from_stage)
  stage = branched.from_stage if gate_stage is None else gate_stage
  if stage not in branched.stages[: last + 1]:
    raise unknown_name("gate_stage", stage, branched.stages[: last + 1])
  module = GatedBranches(separate(branched), separate(gate), stage)
  return Network(module, nested({"branched": branched_variables, "gate": gate_variables}))


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
