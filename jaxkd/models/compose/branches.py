"""Networks with several branches on a shared trunk, and the gated ensemble of the branches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses.dml import gated_logits
from jaxkd.models.compose.parts import check_staged, merge_variables, separate
from jaxkd.models.staged import TorchNames
from jaxkd.models.torch.names import module_path, prefix_paths
from jaxkd.types import Array, Network, Output


class Branched(nn.Module):
  """The layers of a network up to a stage, then several copies of its later layers.

  The trunk runs once. The variables are {"params": {"trunk": ..., "branches_0": ..., ...},
  "batch_stats": ...}; the trunk has no variables of later layers, the branches none of earlier
  layers. Every copy starts from its own random values.

  Attributes:
    network: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    branches: number of copies, at least 1.
    from_stage: the last stage of the trunk.

  Source: Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, whose
  networks for small images share all but the last stage and have three branches.
  """

  network: nn.Module
  branches: int
  from_stage: str = "stage2"

  def setup(self) -> None:
    """Create the trunk and the branches.

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
    """Module names in ONE's code: the network's, and in branches layer3_1 ..., classfier3_1 ....

    The number after the underscore counts the branches from 1. Empty if the network has no names.
    """
    plain: TorchNames = getattr(self.network, "torch_names", ())
    if not plain:
      return ()

    def branch_path(match: re.Match[str]) -> str:
      layer, number, rest = match["layer"], int(match["branch"]), match["rest"] or ""
      name = "fc" if layer is None else f"layer{layer}{rest}"
      # For a name that the network does not know, the result is the path of no variable.
      return f"{_branch(number - 1)}/{module_path(name, plain) or name}"

    pattern = r"(?:layer(?P<layer>\d+)|classi?fier\d+)_(?P<branch>\d+)(?P<rest>\..+)?"
    return ((pattern, branch_path), *prefix_paths("trunk", plain))

  def __call__(self, images: Array, train: bool = False) -> tuple[Output, ...]:
    """One Output per branch, with the branch's logits and features and the trunk's features.

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
  """The trunk and one branch as the plain network, with the plain network's variable names.

  Args:
    module: the branched model.
    variables: its Flax variables.
    index: of the branch, from 0.

  Returns:
    The plain network and its variables; the arrays are not copied. In evaluation mode its outputs
    are those of the branch.

  Raises:
    ConfigError: for an index out of range, variables without the branch, or a network that shares
      variables between its early and its later layers.
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


class GatedBranches(nn.Module):
  """The logits of all branches, summed with weights that a gate computes for each image.

  The variables are {"params": {"branched": ..., "gate": ...}, ...}.

  Attributes:
    branched: a Branched model.
    gate: `__call__(features, train) -> (B, branches)`, such as jaxkd.adapters.Gate.
    gate_stage: the stage of the trunk whose features the gate reads.

  Source: Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018.
  """

  branched: nn.Module
  gate: nn.Module
  gate_stage: str = "stage2"

  @property
  def torch_names(self) -> TorchNames:
    """Module names in ONE's code: those of Branched, and control_v1 and bn_v1 for the gate."""
    branched: TorchNames = getattr(self.branched, "torch_names", ())
    gate = ((r"control_v1", "gate/linear"), (r"bn_v1", "gate/bn"))
    return (*gate, *prefix_paths("branched", branched)) if branched else ()

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Logits (B, classes): the sum over branches of gate * logits. No features.

    Raises:
      ConfigError: for an unknown stage, or a gate for another number of branches.
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
  """Combine branches and a gate into one network, the gated ensemble of ONE.

  Args:
    branched: the branched model.
    gate: as in GatedBranches.
    branched_variables: its Flax variables.
    gate_variables: the gate's Flax variables.
    gate_stage: the stage that the gate reads; None takes the last stage of the trunk.

  Returns:
    The GatedBranches and its variables; the arrays are not copied.

  Raises:
    ConfigError: for a stage that the trunk does not have.
  """
  last = branched.stages.index(branched.from_stage)
  stage = branched.from_stage if gate_stage is None else gate_stage
  if stage not in branched.stages[: last + 1]:
    raise unknown_name("gate_stage", stage, branched.stages[: last + 1])
  module = GatedBranches(separate(branched), separate(gate), stage)
  return Network(module, merge_variables({"branched": branched_variables, "gate": gate_variables}))


def _check(module: Branched) -> None:
  check_staged(module.network, "Branched")
  if module.branches < 1:
    raise ConfigError(f"Branched: branches is {module.branches}: it must be at least 1")
  if module.from_stage not in module.network.stages:
    raise unknown_name("from_stage", module.from_stage, module.network.stages)


def _branch(index: int) -> str:
  return f"branches_{index}"
