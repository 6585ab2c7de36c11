"""KDCL: networks that learn together, each from its own augmentation, from one ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd import losses
from jaxkd.counts import refuse_parts, scaled
from jaxkd.fields import choice, flag, integer, names, number
from jaxkd.losses.kdcl import ENSEMBLES, OF_WHOLE_BATCHES, PROJECTIONS, Ensemble
from jaxkd.methods._labels import label_terms, refuse_multi_hot
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup
from jaxkd.methods.dml import accuracies, mutual, peers_of
from jaxkd.networks import key_for, learn, merge
from jaxkd.types import Array, Aux, Batch, Context, Participants, Scheme, Terms


def collaborative(
  peers: Mapping[str, nn.Module],
  *,
  weight: float = 1.0,
  label_weight: float = 1.0,
  ensemble: Ensemble = "minlogit",
  **options: Any,
) -> Scheme:
  """Return the scheme of several untrained networks that learn from one ensemble of all.

  The objective is label_weight * the sum of the peers' cross-entropies + weight *
  `losses.collaborative_learning`. A peer whose name is that of a view of the batch (`Batch.views`)
  sees that view, such as an augmentation of its own (`PhaseSpec.augmentations`); the others see the
  batch's inputs.

  Participants: the peers, by the names given. Predictors: each peer, and with more than one the
  "ensemble", the mean of their probabilities.

  Args:
    peers: participant name -> `__call__(images, train) -> Output`, of any architectures.
    weight: weight of the divergence from the ensemble.
    label_weight: weight of the cross-entropies.
    ensemble: "minlogit", "naive", "naive_batch", "mean" or "linear". "naive_batch" and "linear"
      depend on the whole batch, of all devices, and are refused on parts of it (`accumulate`).
    **options: further options of `losses.collaborative_learning`.

  Raises:
    ConfigError: if there is no peer; when traced, for an invalid option.

  Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020. No code
  by the authors is published, and no re-implementation has KDCL-General, whose weights come from
  validation images. kdcl-rat-selection has `label_weight=0.5, weight=0.5` and T = 2.
  """
  together = mutual(peers)

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: None,
    context: Context,
  ) -> tuple[Array, Aux]:
    refuse_multi_hot("collaborative learning", batch)
    whole = ensemble in OF_WHOLE_BATCHES
    if whole:
      refuse_parts(f"ensemble={ensemble!r}", context, "which depends on the whole batch")
    variables = merge(participants, learning)
    outputs, state = {}, {}
    for name, peer in peers.items():
      outputs[name], state[name] = learn(
        peer,
        variables[name],
        batch.views.get(name, batch.inputs),
        key_for(context.rng, name),
        where=batch.mask,
      )
    each = (label_terms(output.logits, batch, context) for output in outputs.values())
    taught = losses.collaborative_learning(
      list(outputs.values()),
      batch.labels,
      batch.weights,
      ensemble=ensemble,
      axis_name=context.axis_name if whole else None,
      where=batch.mask,
      **options,
    )
    terms = {
      "labels": label_weight * sum(each, start=Terms()),
      "collaborative": weight * (taught if whole else scaled(taught, batch, context)),
    }
    total = sum((t.total for t in terms.values()), start=jnp.float32(0))
    return total, Aux(terms, accuracies(outputs, batch), state)

  return together._replace(loss=loss)


def _phases(setup: Setup) -> list[PhaseSpec]:
  own = setup.hyperparameters
  peers = peers_of(setup)
  scheme = collaborative(
    peers,
    weight=own.weight,
    label_weight=own.label_weight,
    ensemble=own.ensemble,
    temperature=own.temperature,
    squared_temperature=own.squared_temperature,
    steps=own.steps,
    rate=own.rate,
    projection=own.projection,
  )
  first, *others = peers
  return [
    PhaseSpec(
      DISTILLED,
      scheme,
      learning_rate=own.learning_rate,
      reported=first,
      label="" if own.models[0] == "student" else own.models[0],
      augmentations=tuple(others) if own.own_augmentations else (),
    )
  ]


METHOD = Method(
  "KDCL: peers that learn from one ensemble of all (Guo et al., 2020)",
  {
    "peers": integer(2, minimum=1, maximum=64),
    # The model of peer i is models[i % len(models)]; "student" is student.model.
    "models": names(("student",)),
    "ensemble": choice("minlogit", ENSEMBLES),
    "weight": number(1.0),
    "label_weight": number(1.0),
    "temperature": number(2.0, exclusive=True),
    "squared_temperature": flag(True),
    # Whether every peer sees the images in an augmentation of its own.
    "own_augmentations": flag(True),
    # Gradient steps and step size of ensemble="linear", and what follows each.
    "steps": integer(50),
    "rate": number(0.1, exclusive=True),
    "projection": choice("simplex", PROJECTIONS),
  },
  phases=_phases,
  source="Guo et al., Online Knowledge Distillation via Collaborative Learning, CVPR 2020",
  without_teacher=True,
)
