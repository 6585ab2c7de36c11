"""Branches whose logits a gate weighs, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxkd.errors import unknown_name
from jaxkd.losses.peers import gated_logits
from jaxkd.models.branched import Branched
from jaxkd.models.copies import separate
from jaxkd.models.ensembles import nested
from jaxkd.models.staged import TorchNames
from jaxkd.models.torch_names import below
from jaxkd.types import Array, Network, Output


class GatedBranches(nn.Module):
  """The branches' logits, weighted image by image by a gate.

  The variables are {"params": {"branched": ..., "gate": ...}, ...}.

  Attributes:
    branched: a Branched model.
    gate: `__call__(features, train) -> (B, branches)`, such as jaxkd.connectors.Gate.
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
