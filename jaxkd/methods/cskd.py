"""CS-KD: a network whose predictions for two examples of one class are to agree."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxkd import losses
from jaxkd.counts import scaled
from jaxkd.errors import ConfigError
from jaxkd.fields import flag, number
from jaxkd.methods._labels import accuracy, label_terms, refuse_multi_hot
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup
from jaxkd.methods.supervised import supervised
from jaxkd.networks import key_for, learn, merge, update
from jaxkd.types import Array, Aux, Batch, Context, Output, Participants, Scheme

# The view of a batch that has another example of the class of each example.
PARTNER = "partner"


def class_wise(
  student: nn.Module,
  *,
  weight: float = 1.0,
  temperature: float = 4.0,
  squared_temperature: bool = True,
) -> Scheme:
  """Return the scheme of a network that learns from labels and from pairs of one class.

  The objective is cross-entropy + weight * `losses.class_wise(example, partner)`. The view
  "partner" of a batch has, in row b, the inputs of another example of the class of example b
  (`jaxkd.data.partners`, `PhaseSpec.partners`). The network runs on it in training mode and without
  a gradient, after it ran on the examples, and updates its batch statistics a second time. Only the
  examples themselves have a label term. An example without a label is its own partner under another
  augmentation.

  The participant and the predictor: "student".

  Args:
    student: `__call__(images, train) -> Output`.
    weight: weight of the pairs' term.
    temperature: its temperature.
    squared_temperature: multiply it by the squared temperature.

  Raises:
    ConfigError: when traced, for a batch without the view.

  Source: Yun et al., "Regularizing Class-Wise Predictions via Self-Knowledge Distillation", CVPR
  2020, the authors' code, whose sampler may draw an example as its own partner; here it is another
  one, as in the paper. There the mean over batches divides by the number of batches less 1, which
  fails for one batch.
  """
  alone = supervised(student)

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: None,
    context: Context,
  ) -> tuple[Array, Aux]:
    refuse_multi_hot("pairs of one class", batch)
    if PARTNER not in batch.views:
      raise ConfigError(
        f"batch.views={sorted(batch.views)}: expected {PARTNER!r}, the inputs of another example "
        "of each example's class (jaxkd.data.training_batches(..., partners=...))"
      )
    variables = merge(participants, learning)["student"]
    output, changes = learn(student, variables, batch.inputs, context.rng, where=batch.mask)
    partner, again = learn(
      student,
      lax.stop_gradient(update(variables, changes)),
      batch.views[PARTNER],
      key_for(context.rng, PARTNER),
      where=batch.mask,
    )
    taught = losses.class_wise(
      Output(output.logits),
      Output(partner.logits),
      temperature=temperature,
      squared_temperature=squared_temperature,
      where=batch.mask,
    )
    terms = {
      "labels": label_terms(output.logits, batch, context),
      "class_wise": weight * scaled(taught, batch, context),
    }
    total = sum((t.total for t in terms.values()), start=jnp.float32(0))
    metrics = {"accuracy": accuracy(output.logits, batch)}
    return total, Aux(terms, metrics, {"student": update(changes, again)})

  return alone._replace(loss=loss)


def _phases(setup: Setup) -> list[PhaseSpec]:
  own = setup.hyperparameters
  scheme = class_wise(
    setup.student,
    weight=own.weight,
    temperature=own.temperature,
    squared_temperature=own.squared_temperature,
  )
  return [
    PhaseSpec(DISTILLED, scheme, learning_rate=own.learning_rate, partners=(PARTNER,)),
  ]


METHOD = Method(
  "CS-KD: predictions for two examples of one class agree (Yun et al., 2020)",
  {
    "weight": number(1.0),
    "temperature": number(4.0, exclusive=True),
    "squared_temperature": flag(True),
  },
  phases=_phases,
  source="Yun et al., Regularizing Class-Wise Predictions via Self-Knowledge Distillation, 2020",
  without_teacher=True,
)
