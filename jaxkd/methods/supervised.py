"""The scheme of one network that learns from labels alone."""

from __future__ import annotations

import jax.numpy as jnp

from jaxkd.methods._labels import accuracy, label_terms
from jaxkd.methods.base import Method
from jaxkd.networks import Model, infer, initialize, learn, merge, network_of
from jaxkd.types import Array, Aux, Batch, Context, Network, Participants, Scheme


def supervised(
  model: Model, *, participant: str = "student", label_smoothing: float = 0.0
) -> Scheme:
  """Return the scheme of a network that learns from labels: a teacher, or a student as baseline.

  Args:
    model: `__call__(images, train) -> Output`.
    participant: its name; also the name of the only predictor.
    label_smoothing: probability spread over all classes.
  """

  def init(rng: Array, batch: Batch) -> Participants:
    return {participant: initialize(model, rng, participant, batch.inputs)}

  def targets(participants: Participants, batch: Batch) -> None:
    return None

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: None,
    context: Context,
  ) -> tuple[Array, Aux]:
    variables = merge(participants, learning)[participant]
    output, changes = learn(model, variables, batch.inputs, context.rng, where=batch.mask)
    labels = label_terms(output.logits, batch, context, label_smoothing=label_smoothing)
    metrics = {"accuracy": accuracy(output.logits, batch)}
    return jnp.asarray(labels.logit), Aux({"labels": labels}, metrics, {participant: changes})

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    return {participant: infer(model, participants[participant], images).logits}

  def export(participants: Participants) -> dict[str, Network]:
    return {participant: network_of(model, participants[participant])}

  return Scheme(init, targets, loss, predict, (participant,), export)


TEACHER = Method(
  "the teacher alone, from labels", {}, same_classes="scores the teacher", multi_label=True
)
ALONE = Method("the student alone, from labels", {}, takes_exits=True, multi_label=True)
