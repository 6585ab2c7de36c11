"""ONE: a network whose branches learn from their own gated ensemble."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd import losses
from jaxkd.adapters import Gate
from jaxkd.counts import scaled
from jaxkd.fields import choice, flag, integer, number, text
from jaxkd.methods._labels import accuracy, label_terms, refuse_multi_hot
from jaxkd.methods._soft_targets import STANDARDIZE
from jaxkd.methods._stages import AUTO, before_last
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup, feature_shape, sizes
from jaxkd.methods.distillation import Weight
from jaxkd.methods.ramps import RAMPS, ramp
from jaxkd.models import Branched, branch_network, gated_branches
from jaxkd.networks import infer, initialize, key_for, learn, merge
from jaxkd.types import (
  Array,
  Aux,
  Batch,
  Context,
  Network,
  Output,
  Participants,
  Scheme,
  Terms,
)


def native_ensemble(
  network: nn.Module,
  gate: nn.Module,
  *,
  branches: int = 3,
  from_stage: str = "stage2",
  weight: Weight = 1.0,
  temperature: float = 3.0,
  detached: bool = True,
  standardize: bool = False,
) -> Scheme:
  """Return the scheme of one network with several copies of its last layers and a gate over them.

  The objective is sum_k CE(branch_k) + CE(ensemble) + weight * `losses.native_ensemble`, where the
  ensemble's logits are those of the branches weighted by the gate, and the branches learn from
  them. The gate learns from CE(ensemble) alone, as the teacher side of the last term is constant. A
  single branch equals its ensemble: it learns from labels alone, and there is no gate.

  Participants: "student", the trunk and the branches, and "gate". Predictors: "branch_0", ..., and
  with more than one branch the "ensemble". A branch is exported as the plain network.

  Args:
    network: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    gate: `__call__(features, train)` -> (B, branches), weights that sum to 1
      (`jaxkd.adapters.Gate`).
    branches: number of copies.
    from_stage: the last stage that the branches share.
    weight: weight of the last term; a function of the step for a ramp.
    temperature: temperature of the last term.
    detached: whether the ensemble is constant in the last term.
    standardize: whether the last term compares standardised logits.

  Raises:
    ConfigError: if `branches` is 0, there is no such stage, or the network cannot resume from it.

  Source: Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, the
  authors' code (T = 3, weight rising exponentially over 80 of 300 epochs); `detached=False` is
  OKDDip's.
  """
  branched = Branched(network, branches, from_stage)

  def gates(variables: Participants, outputs: tuple[Output, ...]) -> Array:
    return infer(gate, variables["gate"], outputs[0].features[from_stage])

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {"student": initialize(branched, rng, "student", batch.inputs)}
    if branches > 1:
      trunk = infer(branched, participants["student"], batch.inputs)[0].features[from_stage]
      participants["gate"] = initialize(gate, rng, "gate", trunk)
    return participants

  def targets(participants: Participants, batch: Batch) -> None:
    return None

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: None,
    context: Context,
  ) -> tuple[Array, Aux]:
    refuse_multi_hot("a native ensemble", batch)
    variables = merge(participants, learning)
    state: Participants = {}
    outputs, state["student"] = learn(
      branched,
      variables["student"],
      batch.inputs,
      key_for(context.rng, "student"),
      where=batch.mask,
    )
    each = (label_terms(output.logits, batch, context) for output in outputs)
    terms = {"labels": sum(each, start=Terms())}
    metrics = _accuracies({f"branch_{k}": output.logits for k, output in enumerate(outputs)}, batch)
    if branches > 1:
      shares, state["gate"] = learn(
        gate,
        variables["gate"],
        outputs[0].features[from_stage],
        key_for(context.rng, "gate"),
        where=batch.mask,
      )
      ensemble = Output(logits=losses.gated_logits(outputs, shares))
      terms["labels_ensemble"] = label_terms(ensemble.logits, batch, context)
      taught = losses.native_ensemble(
        outputs,
        ensemble,
        temperature=temperature,
        detached=detached,
        standardize=standardize,
        where=batch.mask,
      )
      taught = scaled(taught, batch, context)
      terms["ensemble"] = (weight(context.step) if callable(weight) else weight) * taught
      metrics |= _accuracies({"ensemble": ensemble.logits}, batch)
    metrics["accuracy"] = metrics["accuracy_branch_0"]
    total = sum((t.total for t in terms.values()), start=jnp.float32(0))
    return total, Aux(terms, metrics, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    outputs = infer(branched, participants["student"], images)
    logits = {f"branch_{k}": output.logits for k, output in enumerate(outputs)}
    if branches > 1:
      logits["ensemble"] = losses.gated_logits(outputs, gates(participants, outputs))
    return logits

  def export(participants: Participants) -> dict[str, Network]:
    student = participants["student"]
    networks = {f"branch_{k}": branch_network(branched, student, k) for k in range(branches)}
    if branches > 1:
      networks["ensemble"] = gated_branches(branched, gate, student, participants["gate"])
    return networks

  learners = ("student", "gate") if branches > 1 else ("student",)
  return Scheme(init, targets, loss, predict, learners, export)


def _accuracies(logits: dict[str, Any], batch: Batch) -> dict[str, tuple[Array, Array]]:
  return {f"accuracy_{name}": accuracy(z, batch) for name, z in logits.items()}


def _phases(setup: Setup) -> list[PhaseSpec]:
  hyperparameters = setup.hyperparameters
  from_stage = (
    hyperparameters.from_stage if hyperparameters.from_stage != AUTO else before_last(setup)
  )
  shape = feature_shape(setup.plain_output, from_stage, "student")
  weight: Weight = hyperparameters.weight
  if hyperparameters.ramp != "none":
    steps = hyperparameters.ramp_epochs * setup.steps_per_epoch
    weight = ramp(hyperparameters.ramp, steps=steps, end=hyperparameters.weight)
  scheme = native_ensemble(
    setup.student,
    Gate(hyperparameters.branches, **setup.options),
    branches=hyperparameters.branches,
    from_stage=from_stage,
    weight=weight,
    temperature=hyperparameters.temperature,
    detached=hyperparameters.detached,
    standardize=hyperparameters.standardize,
  )
  shared = f"{hyperparameters.branches} branches share the layers up to {from_stage} {sizes(shape)}"
  return [
    PhaseSpec(
      DISTILLED,
      scheme,
      learning_rate=hyperparameters.learning_rate,
      reported="branch_0",
      notes=(shared,),
    )
  ]


METHOD = Method(
  "ONE: branches that learn from their gated ensemble (Lan et al., 2018)",
  {
    "branches": integer(3, minimum=1, maximum=64),
    "from_stage": text(AUTO),
    "weight": number(1.0),
    "temperature": number(3.0, exclusive=True),
    "detached": flag(True),
    **STANDARDIZE,
    "ramp": choice("exponential", ("none", *RAMPS)),
    "ramp_epochs": number(80.0, exclusive=True),
  },
  phases=_phases,
  source="Lan et al., Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018",
  without_teacher=True,
  needs="stages",
)
