"""DML, deep mutual learning: networks learn together, from labels and from each other."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxkd import losses
from jaxkd.counts import scaled
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.fields import choice, flag, integer, names, number
from jaxkd.losses._numerics import mean_log_probabilities
from jaxkd.methods._labels import accuracy, label_terms, refuse_multi_hot
from jaxkd.methods._soft_targets import STANDARDIZE
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup
from jaxkd.models import ensemble_of
from jaxkd.networks import infer, initialize, key_for, learn, merge, update
from jaxkd.types import (
  Array,
  Aux,
  Batch,
  Context,
  Network,
  Participants,
  Scheme,
  Terms,
)

UPDATES = ("synchronous", "alternating")


def mutual(
  peers: Mapping[str, nn.Module],
  *,
  weight: float = 1.0,
  label_smoothing: float = 0.0,
  updates: Literal["synchronous", "alternating"] = "synchronous",
  **options: Any,
) -> Scheme:
  """Return the scheme of several untrained networks, the peers, that learn from each other.

  Each peer's objective is cross-entropy + weight * `losses.mutual(peer, other peers)`, in which the
  outputs of the other peers are constant. The objective of the step is the sum over the peers. All
  peers see the same images.

  Participants: the peers, by the names given. Predictors: each peer, and with more than one the
  "ensemble", the mean of their probabilities.

  Args:
    peers: participant name -> `__call__(images, train) -> Output`. Any number, of any
      architectures, in any order.
    weight: weight of the distillation from the other peers.
    label_smoothing: probability spread over all classes in the labels.
    updates: "synchronous" updates every peer at every step. "alternating" updates one peer per
      step, in turn (number `step` modulo the number of peers), with its own objective; the other
      peers only predict. The optimizer must not change them either: `jaxkd.train.take_turns`.
    **options: options of `losses.mutual`: temperature, over_peers, target, standardize, ...

  Raises:
    ConfigError: if there is no peer, or `updates` is unknown.

  Source: Zhang et al., "Deep Mutual Learning", CVPR 2018. "alternating" is how the authors' code
  updates, with a new batch for every peer; the Zoo and later comparisons update synchronously.
  """
  if not peers:
    raise ConfigError("peers is empty: mutual learning needs at least one")
  if updates not in UPDATES:
    raise unknown_name("updates", updates, UPDATES)

  def init(rng: Array, batch: Batch) -> Participants:
    return {name: initialize(model, rng, name, batch.inputs) for name, model in peers.items()}

  def targets(participants: Participants, batch: Batch) -> None:
    return None

  def run(name: str, variables: Participants, batch: Batch, context: Context) -> Any:
    return learn(
      peers[name], variables[name], batch.inputs, key_for(context.rng, name), where=batch.mask
    )

  def objective(
    name: str, outputs: Mapping[str, Any], batch: Batch, context: Context
  ) -> dict[str, Terms]:
    """Return the terms of one peer."""
    logits = outputs[name].logits
    labels = label_terms(logits, batch, context, label_smoothing=label_smoothing)
    others = [output for other, output in outputs.items() if other != name]
    taught = losses.mutual(outputs[name], others, where=batch.mask, **options)
    return {"labels": labels, "mutual": weight * scaled(taught, batch, context)}

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: None,
    context: Context,
  ) -> tuple[Array, Aux]:
    refuse_multi_hot("mutual learning", batch)
    variables = merge(participants, learning)
    if updates == "alternating" and len(peers) > 1:
      turns = [functools.partial(turn, name) for name in peers]
      totals, metrics, state = lax.switch(
        context.step % len(peers), turns, variables, batch, context
      )
      terms = {kind: Terms(logit=total) for kind, total in totals.items()}
    else:
      outputs, state = {}, {}
      for name in peers:
        outputs[name], state[name] = run(name, variables, batch, context)
      parts = [objective(name, outputs, batch, context) for name in peers]
      terms = {kind: sum((part[kind] for part in parts), start=Terms()) for kind in parts[0]}
      metrics = accuracies(outputs, batch)
    total = sum((t.total for t in terms.values()), start=jnp.float32(0))
    return total, Aux(terms, metrics, state)

  def turn(name: str, variables: Participants, batch: Batch, context: Context) -> Any:
    """Return the peer's logit terms, all accuracies, and all states, of which its own is new."""
    outputs, state = {}, {}
    for other in peers:
      output, changes = run(other, variables, batch, context)
      outputs[other] = output if other == name else lax.stop_gradient(output)
      kept = {k: v for k, v in variables[other].items() if k != "params"}
      # All branches of lax.switch return the same tree, so unchanged state is included.
      state[other] = update(kept, changes) if other == name else kept
    totals = {k: terms.logit for k, terms in objective(name, outputs, batch, context).items()}
    return totals, accuracies(outputs, batch), state

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    logits = {
      name: infer(model, participants[name], images).logits for name, model in peers.items()
    }
    if len(peers) > 1:
      logits["ensemble"] = mean_log_probabilities(list(logits.values()))
    return logits

  def export(participants: Participants) -> dict[str, Network]:
    networks = {name: Network(model, participants[name]) for name, model in peers.items()}
    if len(peers) > 1:
      networks["ensemble"] = ensemble_of(networks)
    return networks

  return Scheme(init, targets, loss, predict, tuple(peers), export)


def accuracies(outputs: Mapping[str, Any], batch: Batch) -> dict[str, tuple[Array, Array]]:
  """Return the accuracy of each network, and the mean over all."""
  found = {f"accuracy_{name}": accuracy(output.logits, batch) for name, output in outputs.items()}
  correct, count = jax.tree.map(lambda *parts: sum(parts), *found.values())
  return {"accuracy": (correct, count), **found}


def peers_of(setup: Setup) -> dict[str, nn.Module]:
  """Return the peers of `method.peers` and `method.models` by participant name.

  Raises:
    ConfigError: for more models than peers.
  """
  own = setup.hyperparameters
  if len(own.models) > own.peers:
    raise ConfigError(
      f"method.models={tuple(own.models)}: expected at most {own.peers}, as method.peers says"
    )
  chosen = (own.models[index % len(own.models)] for index in range(own.peers))
  return {
    f"peer_{index}": setup.student if name == "student" else setup.create(name)
    for index, name in enumerate(chosen)
  }


def _phases(setup: Setup) -> list[PhaseSpec]:
  hyperparameters = setup.hyperparameters
  peers = peers_of(setup)
  scheme = mutual(
    peers,
    weight=hyperparameters.weight,
    label_smoothing=hyperparameters.label_smoothing,
    updates=hyperparameters.updates,
    temperature=hyperparameters.temperature,
    squared_temperature=hyperparameters.squared_temperature,
    over_peers=hyperparameters.over_peers,
    target=hyperparameters.target,
    detached=hyperparameters.detached,
    standardize=hyperparameters.standardize,
  )
  first = hyperparameters.models[0]
  return [
    PhaseSpec(
      DISTILLED,
      scheme,
      learning_rate=hyperparameters.learning_rate,
      reported="peer_0",
      label="" if first == "student" else first,
      turns=tuple(peers) if hyperparameters.updates == "alternating" else (),
    )
  ]


METHOD = Method(
  "deep mutual learning: peers that teach each other (Zhang et al., 2018)",
  {
    "peers": integer(2, minimum=1, maximum=64),
    # The model of peer i is models[i % len(models)]; "student" is student.model.
    "models": names(("student",)),
    "weight": number(1.0),
    "temperature": number(1.0, exclusive=True),
    "squared_temperature": flag(True),
    "over_peers": choice("sum", ("sum", "mean")),
    "target": choice("pairwise", ("pairwise", "ensemble")),
    "detached": flag(True),
    **STANDARDIZE,
    # With "alternating", each peer is updated at every peers-th step.
    "updates": choice("synchronous", UPDATES),
    "label_smoothing": number(0.0, maximum=1.0),
  },
  phases=_phases,
  source="Zhang et al., Deep Mutual Learning, CVPR 2018",
  without_teacher=True,
)
