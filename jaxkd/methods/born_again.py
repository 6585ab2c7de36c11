"""Born-again networks: each generation learns from the one before, and all predict together."""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.fields import choice, integer, number
from jaxkd.losses._numerics import mean_log_probabilities
from jaxkd.methods.base import BASELINE, Method, PhaseSpec, Setup, check_something_learns
from jaxkd.methods.distillation import Distillation, Loss, per_example, whole_batch
from jaxkd.methods.offline import offline
from jaxkd.methods.supervised import supervised
from jaxkd.models import ensemble_of
from jaxkd.networks import infer, initialize, key_for
from jaxkd.types import Array, Batch, Context, Network, Output, Participants, Scheme, Terms

# Far enough from the seeds that experiments are repeated with.
_NEXT_GENERATION = 1000


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


def _phases(setup: Setup) -> list[PhaseSpec]:
  check_something_learns(setup)
  own = setup.hyperparameters
  if own.form == "confidence" and not own.weight:
    raise ConfigError("method.weight=0.0: expected a number > 0 with form='confidence'")
  # At the rate of all generations, which differ in their teachers alone.
  first = PhaseSpec(
    BASELINE, supervised(setup.student), learning_rate=own.learning_rate, role="baseline"
  )
  found = [first]
  for generation in range(1, own.generations + 1):
    inherit = {
      generation_name(earlier): f"{training.name}/student" for earlier, training in enumerate(found)
    }
    distillation = _from_generation(setup, generation_name(generation - 1))
    # Where the teacher's confidence weighs the labels, they are in that term.
    label_weight = 0.0 if own.form == "confidence" else own.label_weight
    found.append(
      PhaseSpec(
        generation_name(generation),
        born_again(setup.student, [distillation], generation=generation, label_weight=label_weight),
        inherit,
        learning_rate=own.learning_rate,
        seed_offset=generation * _NEXT_GENERATION,
      )
    )
  return found


def _from_generation(setup: Setup, teacher: str) -> Distillation:
  """What a generation learns from the one before."""
  own = setup.hyperparameters
  if own.form == "confidence":
    loss: Loss = whole_batch(
      losses.confidence_weighted_by_teacher_max,
      labels=True,
      reason="which divides by what the labels of a batch weigh",
    )
    return Distillation("confident_labels", loss, own.weight, teacher)
  if own.form == "permuted":
    return Distillation("permuted", permuted(own.temperature), own.weight, teacher)
  loss = per_example(losses.knowledge_distillation, temperature=own.temperature)
  return Distillation("kd", loss, own.weight, teacher)


def permuted(temperature: float) -> Loss:
  """`losses.dark_knowledge_permuted` with a key of the step."""

  def loss(student: Output, teacher: Output, batch: Batch, context: Context) -> Terms:
    rng = key_for(context.rng, "permuted")
    return losses.dark_knowledge_permuted(
      student, teacher, rng=rng, temperature=temperature, where=batch.mask
    )

  return loss


METHOD = Method(
  "born-again networks: each generation taught by the one before (Furlanello et al., 2018)",
  {
    # Those after the first, which has only labels.
    "generations": integer(3, minimum=1, maximum=64),
    # What a generation learns of its teacher: its distribution, how sure it is of each example
    # (a weight of the labels: CWTM), or its distribution with all but the largest entry
    # permuted (DKPP).
    "form": choice("distribution", ("distribution", "confidence", "permuted")),
    "weight": number(1.0),
    # 0 is born-again without labels.
    "label_weight": number(1.0),
    "temperature": number(1.0, exclusive=True),
  },
  phases=_phases,
  source="Furlanello et al., Born-Again Neural Networks, ICML 2018",
  without_teacher=True,
)
