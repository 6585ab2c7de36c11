"""One network that learns from labels alone."""

from __future__ import annotations

from flax import linen as nn

from jaxkd.evaluate.accuracy import score
from jaxkd.losses import cross_entropy
from jaxkd.participants import merge
from jaxkd.schemes.networks import infer, initialize, learn
from jaxkd.types import Array, Aux, Batch, Context, Network, Participants, Scheme, Terms


def supervised(
  model: nn.Module, *, participant: str = "student", label_smoothing: float = 0.0
) -> Scheme:
  """A teacher before it teaches, or a student without a teacher.

  Args:
    model: `__call__(images, train) -> Output`.
    participant: what to call it; also the name of the one predictor.
    label_smoothing: probability spread over all classes.
  """

  def init(rng: Array, batch: Batch) -> Participants:
    return {participant: initialize(model, rng, participant, batch.images)}

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
    output, changes = learn(model, variables, batch.images, context.rng)
    labels = cross_entropy(
      output.logits,
      batch.labels,
      batch.weights,
      label_smoothing=label_smoothing,
      axis_name=context.axis_name,
    )
    metrics = {"accuracy": score(output.logits, batch.labels, batch.weights)["accuracy"]}
    return labels, Aux({"labels": Terms(logit=labels)}, metrics, {participant: changes})

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    return {participant: infer(model, participants[participant], images).logits}

  def export(participants: Participants) -> dict[str, Network]:
    return {participant: Network(model, participants[participant])}

  return Scheme(init, targets, loss, predict, (participant,), export)
