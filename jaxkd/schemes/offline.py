"""A student that learns from frozen teachers: any sum of losses, through any connectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
from flax import linen as nn

from jaxkd.evaluate.accuracy import score
from jaxkd.losses import cross_entropy
from jaxkd.participants import merge
from jaxkd.schemes.networks import infer, initialize, key_for, learn
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


@dataclasses.dataclass(frozen=True)
class Distillation:
  """One summand of the objective.

  Attributes:
    name: under which its terms are reported; unique in a scheme.
    loss: (student Output, teacher Output) -> Terms, its options already bound
      (`functools.partial(attention_transfer, power=2)`).
    weight: of its terms.
    teacher: the participant it looks to.
    connectors: student stage -> module through which that stage's features pass before the loss
      sees them. Each is a participant, "NAME_STAGE_connector", and learns with the student.
  """

  name: str
  loss: Callable[[Output, Output], Terms]
  weight: float = 1.0
  teacher: str = "teacher"
  connectors: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)

  def connector_name(self, stage: str) -> str:
    """The participant that holds a connector's variables."""
    return f"{self.name}_{stage}_connector"


def offline(
  student: nn.Module,
  teachers: Mapping[str, nn.Module],
  distillations: Sequence[Distillation],
  *,
  label_weight: float = 1.0,
) -> Scheme:
  """A scheme of one student and one or several teachers that do not change.

  The objective is label_weight * cross-entropy + sum of weight * loss(student, teacher). Teachers
  run in evaluation mode on the student's augmented images.

  Args:
    student: `__call__(images, train) -> Output`.
    teachers: participant name -> model.
    distillations: what is matched, with whom, at which weight.
    label_weight: weight of the cross-entropy on labelled examples; 0 needs no labels.

  Raises:
    ValueError: if two distillations share a name ("labels" is the cross-entropy's), two
      participants would, or a distillation names a teacher that is not there.
  """
  names = ["labels", *(distillation.name for distillation in distillations)]
  if len(set(names)) < len(names):
    raise ValueError(f"the terms of the objective need different names, got {names}")
  for distillation in distillations:
    if distillation.teacher not in teachers:
      raise ValueError(
        f"distillation {distillation.name!r} names teacher {distillation.teacher!r}; "
        f"there are {sorted(teachers)}"
      )
  connecting = [
    (distillation.connector_name(stage), (stage, module))
    for distillation in distillations
    for stage, module in distillation.connectors.items()
  ]
  connectors = dict(connecting)
  everyone_named = ["student", *teachers, *(name for name, _ in connecting)]
  if len(set(everyone_named)) < len(everyone_named):
    raise ValueError(f"participants need different names, got {everyone_named}")

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {"student": initialize(student, rng, "student", batch.images)}
    for name, model in teachers.items():
      participants[name] = initialize(model, rng, name, batch.images)
    if connectors:
      features = infer(student, participants["student"], batch.images).features
      for name, (stage, module) in connectors.items():
        participants[name] = initialize(module, rng, name, features[stage])
    return participants

  def targets(participants: Participants, batch: Batch) -> dict[str, Output]:
    return {
      name: infer(model, participants[name], batch.images) for name, model in teachers.items()
    }

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: dict[str, Output],
    context: Context,
  ) -> tuple[Array, Aux]:
    everyone = merge(participants, learning)
    output, changes = learn(student, everyone["student"], batch.images, context.rng)
    state: Participants = {"student": changes}
    terms: dict[str, Terms] = {}
    if label_weight:
      labels = cross_entropy(
        output.logits, batch.labels, batch.weights, axis_name=context.axis_name
      )
      terms["labels"] = label_weight * Terms(logit=labels)
    for distillation in distillations:
      seen = dict(output.features)
      for stage, module in distillation.connectors.items():
        name = distillation.connector_name(stage)
        seen[stage], state[name] = learn(
          module, everyone[name], output.features[stage], key_for(context.rng, name)
        )
      connected = dataclasses.replace(output, features=seen)
      terms[distillation.name] = distillation.weight * distillation.loss(
        connected, targets[distillation.teacher]
      )
    metrics = {"accuracy": score(output.logits, batch.labels, batch.weights)["accuracy"]}
    total = sum((t.total for t in terms.values()), start=jax.numpy.float32(0))
    return total, Aux(terms, metrics, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    return {"student": infer(student, participants["student"], images).logits}

  def export(participants: Participants) -> dict[str, Network]:
    return {"student": Network(student, participants["student"])}

  return Scheme(init, targets, loss, predict, ("student", *connectors), export)
