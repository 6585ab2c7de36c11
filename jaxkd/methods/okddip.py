"""OKDDip: branches that learn from mixtures of each other, and a leader that learns from all."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd import losses
from jaxkd.adapters import PeerAttention
from jaxkd.counts import scaled
from jaxkd.errors import ConfigError
from jaxkd.fields import choice, flag, integer, number, text
from jaxkd.losses._numerics import widen
from jaxkd.methods._labels import label_terms, refuse_multi_hot
from jaxkd.methods._stages import AUTO, before_last
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup, feature_shape, sizes
from jaxkd.methods.distillation import Weight
from jaxkd.methods.dml import accuracies
from jaxkd.methods.ramps import RAMPS, ramp
from jaxkd.models import Branched, branch_network, ensemble_of
from jaxkd.networks import infer, initialize, key_for, learn, merge
from jaxkd.types import Array, Aux, Batch, Context, Network, Output, Participants, Scheme, Terms


def diverse_peers(
  network: nn.Module,
  attention: nn.Module,
  *,
  peers: int = 3,
  from_stage: str = "stage2",
  weight: Weight = 1.0,
  **options: Any,
) -> Scheme:
  """Return the scheme of one network with copies of its last layers: several peers and a leader.

  The objective is sum_i CE(peer_i) + CE(leader) + weight * (both terms of `losses.diverse_peers`).
  A peer learns from a mixture of all peers, with weights from the attention over their last
  features; the leader learns from their mean.

  Participants: "student", the trunk and the branches, of which the last is the leader, and
  "attention". Predictors: "peer_0", ..., "leader", and the "ensemble", the mean of the peers'
  logits. A peer or the leader is exported as the plain network.

  Args:
    network: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    attention: `__call__(features of each peer, train)` -> (B, peers, peers)
      (`jaxkd.adapters.PeerAttention`).
    peers: number of peers, without the leader; at least 1.
    from_stage: the last stage that the branches share.
    weight: weight of the last two terms; a function of the step for a ramp.
    **options: options of `losses.diverse_peers`.

  Raises:
    ConfigError: if `peers` is 0, there is no such stage, or the network cannot resume from it.

  Source: Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020, the authors'
  code of the branch-based form: 3 peers and a leader, T = 3, the weight rising exponentially over
  80 of 300 epochs.
  """
  if peers < 1:
    raise ConfigError(f"peers={peers}: expected at least 1")
  branched = Branched(network, peers + 1, from_stage)
  names = (*(f"peer_{k}" for k in range(peers)), "leader")

  def last_features(outputs: tuple[Output, ...]) -> list[Array]:
    stage = branched.stages[-1]
    return [output.features[stage] for output in outputs[:peers]]

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {"student": initialize(branched, rng, "student", batch.inputs)}
    outputs = infer(branched, participants["student"], batch.inputs)
    participants["attention"] = initialize(attention, rng, "attention", last_features(outputs))
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
    refuse_multi_hot("diverse peers", batch)
    variables = merge(participants, learning)
    state: Participants = {}
    key = key_for(context.rng, "student")
    outputs, state["student"] = learn(
      branched, variables["student"], batch.inputs, key, where=batch.mask
    )
    shares, state["attention"] = learn(
      attention,
      variables["attention"],
      last_features(outputs),
      key_for(context.rng, "attention"),
      where=batch.mask,
    )
    *others, leader = outputs
    found = losses.diverse_peers(others, leader, shares, where=batch.mask, **options)
    factor = weight(context.step) if callable(weight) else weight
    each = (label_terms(output.logits, batch, context) for output in outputs)
    terms = {"labels": sum(each, start=Terms())}
    terms |= {name: factor * scaled(part, batch, context) for name, part in found.items()}
    metrics = accuracies(dict(zip(names, outputs, strict=True)), batch)
    metrics["accuracy"] = metrics["accuracy_leader"]
    total = sum((t.total for t in terms.values()), start=jnp.float32(0))
    return total, Aux(terms, metrics, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    outputs = infer(branched, participants["student"], images)
    logits = {name: output.logits for name, output in zip(names, outputs, strict=True)}
    first, *rest = widen(*(output.logits for output in outputs[:peers]))
    return {**logits, "ensemble": sum(rest, start=first) / peers}

  def export(participants: Participants) -> dict[str, Network]:
    student = participants["student"]
    networks = {name: branch_network(branched, student, k) for k, name in enumerate(names)}
    together = {name: network for name, network in networks.items() if name != "leader"}
    return {**networks, "ensemble": ensemble_of(together, combine="logits")}

  return Scheme(init, targets, loss, predict, ("student", "attention"), export)


def _phases(setup: Setup) -> list[PhaseSpec]:
  own = setup.hyperparameters
  from_stage = own.from_stage if own.from_stage != AUTO else before_last(setup)
  shape = feature_shape(setup.plain_output, from_stage, "student")
  weight: Weight = own.weight
  if own.ramp != "none":
    weight = ramp(own.ramp, steps=own.ramp_epochs * setup.steps_per_epoch, end=own.weight)
  scheme = diverse_peers(
    setup.student,
    PeerAttention(dtype=setup.options["dtype"]),
    peers=own.peers,
    from_stage=from_stage,
    weight=weight,
    temperature=own.temperature,
    detached=own.detached,
  )
  shared = f"{own.peers} peers and a leader share the layers up to {from_stage} {sizes(shape)}"
  return [
    PhaseSpec(
      DISTILLED, scheme, learning_rate=own.learning_rate, reported="leader", notes=(shared,)
    )
  ]


METHOD = Method(
  "OKDDip: peers that learn from mixtures of each other, and a leader (Chen et al., 2020)",
  {
    "peers": integer(3, minimum=1, maximum=63),
    "from_stage": text(AUTO),
    "weight": number(1.0),
    "temperature": number(3.0, exclusive=True),
    "detached": flag(False),
    "ramp": choice("exponential", ("none", *RAMPS)),
    "ramp_epochs": number(80.0, exclusive=True),
  },
  phases=_phases,
  source="Chen et al., Online Knowledge Distillation with Diverse Peers, AAAI 2020",
  without_teacher=True,
  needs="stages",
)
