"""PS-KD: a network learns from labels softened by its own predictions of the epoch before."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.adapters import PastPredictions
from jaxkd.errors import ConfigError
from jaxkd.fields import number
from jaxkd.losses.pskd import past_weight_of, softened_labels
from jaxkd.methods._labels import accuracy, label_terms, refuse_multi_hot
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup
from jaxkd.networks import infer, initialize, key_for, learn, merge
from jaxkd.types import (
  Array,
  Aux,
  Batch,
  Context,
  Network,
  Participants,
  Scheme,
)


def progressive(student: nn.Module, *, rows: int, epochs: int, past_weight: float = 0.8) -> Scheme:
  """Return the scheme of a network that learns from its own past predictions.

  The objective is the cross-entropy with (1 - a) * label + a * P, where P is the network's
  prediction for the same example when it saw it last, one epoch earlier, in training mode and under
  another augmentation, and a = past_weight * (e + 1) / epochs in epoch e of the example
  (`Batch.epochs`). An example that was never seen has its label alone: so has every example in
  epoch 0. Examples whose label has weight 0 do not count.

  Participants: "student", and "past", a table of predictions by example (`PastPredictions`), which
  is part of checkpoints and equal on all devices. The predictor: "student".

  Args:
    student: `__call__(images, train) -> Output`.
    rows: rows of the table, more than the largest of `Batch.indices`.
    epochs: number of epochs of the training.
    past_weight: weight of the past prediction in the last epoch.

  Raises:
    ConfigError: if there is no row or no epoch. When traced, for labels that are no class numbers,
      or a batch without `epochs`.

  Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV
  2021, the authors' code (past_weight 0.8, 300 epochs). There a run that is resumed without its
  table learns from zeros in place of past predictions; here the table is in every checkpoint.
  """
  if rows < 1:
    raise ConfigError(f"rows={rows}: expected at least 1, a row for each training example")
  if epochs < 1:
    raise ConfigError(f"epochs={epochs}: expected at least 1")
  past_weight_of(0, last=past_weight, of=epochs)
  table = PastPredictions(rows)

  def init(rng: Array, batch: Batch) -> Participants:
    own = initialize(student, rng, "student", batch.inputs)
    logits = jax.eval_shape(lambda: infer(student, own, batch.inputs).logits)
    inputs = jnp.zeros(logits.shape, logits.dtype), batch
    return {"student": own, "past": initialize(table, rng, "past", inputs)}

  def targets(participants: Participants, batch: Batch) -> None:
    return None

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: None,
    context: Context,
  ) -> tuple[Array, Aux]:
    refuse_multi_hot("past predictions", batch)
    if jnp.issubdtype(jnp.asarray(batch.labels).dtype, jnp.floating):
      raise ConfigError(
        "batch.labels: expected class numbers with past predictions, which are of one example, got "
        "class probabilities, as of mixed examples"
      )
    if batch.epochs is None:
      raise ConfigError("batch.epochs=None: expected (B,), on which the weight depends")
    variables = merge(participants, learning)
    output, changes = learn(
      student,
      variables["student"],
      batch.inputs,
      key_for(context.rng, "student"),
      where=batch.mask,
    )
    module = table.clone(device_axis=context.axis_name)
    (past, seen), written = learn(
      module, variables["past"], (output.logits, batch), key_for(context.rng, "past")
    )
    weight = past_weight_of(batch.epochs, last=past_weight, of=epochs)
    weight = jnp.where(seen & (batch.epochs > 0), weight, 0.0)
    softened = dataclasses.replace(batch, labels=softened_labels(past, batch.labels, weight))
    labels = label_terms(output.logits, softened, context)
    metrics = {
      "accuracy": accuracy(output.logits, batch),
      "past_weight": (jnp.sum(weight), jnp.float32(len(weight))),
    }
    state = {"student": changes, "past": written}
    return jnp.asarray(labels.logit), Aux({"labels": labels}, metrics, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    return {"student": infer(student, participants["student"], images).logits}

  def export(participants: Participants) -> dict[str, Network]:
    return {"student": Network(student, participants["student"])}

  return Scheme(init, targets, loss, predict, ("student", "past"), export)


def _phases(setup: Setup) -> list[PhaseSpec]:
  hyperparameters = setup.hyperparameters
  scheme = progressive(
    setup.student,
    rows=setup.rows,
    epochs=setup.epochs,
    past_weight=hyperparameters.past_weight,
  )
  logits = setup.plain_output.logits
  assert logits is not None
  values = setup.rows
  for size in logits.shape[1:]:
    values *= size
  kept = f"past predictions of {setup.rows} examples: {4 * values / 2**20:.1f} MiB on each device"
  return [PhaseSpec(DISTILLED, scheme, learning_rate=hyperparameters.learning_rate, notes=(kept,))]


METHOD = Method(
  "PS-KD: labels softened by the network's own past predictions (Kim et al., 2021)",
  {
    # alpha_T, the weight of the past prediction in the last epoch; it grows linearly by epoch.
    "past_weight": number(0.8, maximum=1.0),
  },
  phases=_phases,
  source="Kim et al., Self-Knowledge Distillation with Progressive Refinement, ICCV 2021",
  without_teacher=True,
)
