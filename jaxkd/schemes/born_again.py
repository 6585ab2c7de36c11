"""A student that learns from the generation before it, and predicts with all of them."""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.losses._numerics import mean_log_probabilities
from jaxkd.models import ensemble_of
from jaxkd.networks import infer, initialize
from jaxkd.schemes.distillation import Distillation
from jaxkd.schemes.offline import offline
from jaxkd.types import Array, Batch, Network, Participants, Scheme


def born_again(
  student: nn.Module,
  distillations: Sequence[Distillation],
  *,
  generation: int,
  label_weight: float = 1.0,
) -> Scheme:
  """A scheme of one generation: a fresh student, taught by an earlier student like it.

  As `offline`, with the teachers "generation_0" (which had none) to "generation_{k - 1}". Only
  those that a distillation names are run in training; the others are there for the ensemble.

  Predictors: "student", and the "ensemble", the mean of the probabilities of all generations, the
  student's included.

  Args:
    student: the architecture of all of them.
    distillations: `teacher` names the generation it looks to.
    generation: k >= 1, the number of this one.
    label_weight: of the cross-entropy; 0 leaves the labels out.

  Raises:
    ConfigError: if `generation` is less than 1.
    ValueError: as `offline`.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018; the ensembles are its BANE.
  """
  if generation < 1:
    raise ConfigError(f"generation is {generation}: the first that has a teacher is 1")
  earlier = [generation_name(number) for number in range(generation)]
  teaching = {name for distillation in distillations for name in distillation.teachers}
  teachers = {name: student for name in earlier if name in teaching}
  taught = offline(student, teachers, distillations, label_weight=label_weight)

  def init(rng: Array, batch: Batch) -> Participants:
    silent = {
      name: initialize(student, rng, name, batch.images) for name in earlier if name not in teachers
    }
    return {**taught.init(rng, batch), **silent}

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    everyone = [infer(student, participants[name], images).logits for name in earlier]
    own = taught.predict(participants, images)["student"]
    return {"student": own, "ensemble": mean_log_probabilities([*everyone, own])}

  def export(participants: Participants) -> dict[str, Network]:
    networks = {name: Network(student, participants[name]) for name in (*earlier, "student")}
    return {"student": networks["student"], "ensemble": ensemble_of(networks)}

  return taught._replace(init=init, predict=predict, export=export)


def generation_name(number: int) -> str:
  """What a generation is called, as a participant and as a stage."""
  return f"generation_{number}"
