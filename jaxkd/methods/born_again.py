"""Born-again networks: each generation learns from the previous one; all form an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.fields import choice, integer, number
from jaxkd.losses._numerics import mean_log_probabilities
from jaxkd.methods._soft_targets import STANDARDIZE
from jaxkd.methods.base import BASELINE, Method, PhaseSpec, Setup, check_something_learns
from jaxkd.methods.distillation import Distillation, Loss, per_example, whole_batch
from jaxkd.methods.offline import offline
from jaxkd.methods.supervised import supervised
from jaxkd.models import ensemble_of
from jaxkd.networks import infer, initialize, key_for
from jaxkd.types import Array, Batch, Context, Network, Output, Participants, Scheme, Terms

# Larger than the seeds with which experiments are repeated.
_NEXT_GENERATION = 1000


def born_again(
  student: nn.Module,
  distillations: Sequence[Distillation],
  *,
  generation: int,
  label_weight: float = 1.0,
) -> Scheme:
  """Return the scheme of one generation: a new student that learns from earlier generations.

  As `offline`, with the teachers "generation_0" (trained from labels) to "generation_{k - 1}". Only
  those that a distillation names run in training; the others are part of the ensemble.

  Predictors: "student", and the "ensemble", the mean of the probabilities of all generations, the
  student's included.

  Args:
    student: the architecture of all generations.
    distillations: their `teacher` is the name of an earlier generation.
    generation: k >= 1, the number of this generation.
    label_weight: weight of the cross-entropy; 0 trains without labels.

  Raises:
    ConfigError: if `generation` is less than 1.
    ValueError: as `offline`.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018; the ensembles are its BANE.
  """
  if generation < 1:
    raise ConfigError(f"generation is {generation}: the first generation with a teacher is 1")
  earlier = [generation_name(number) for number in range(generation)]
  teaching = {name for distillation in distillations for name in distillation.teachers}
  teachers = {name: student for name in earlier if name in teaching}
  taught = offline(student, teachers, distillations, label_weight=label_weight)

  def init(rng: Array, batch: Batch) -> Participants:
    unused = {
      name: initialize(student, rng, name, batch.inputs) for name in earlier if name not in teachers
    }
    return {**taught.init(rng, batch), **unused}

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    logits = [infer(student, participants[name], images).logits for name in earlier]
    latest = taught.predict(participants, images)["student"]
    return {"student": latest, "ensemble": mean_log_probabilities([*logits, latest])}

  def export(participants: Participants) -> dict[str, Network]:
    networks = {name: Network(student, participants[name]) for name in (*earlier, "student")}
    return {"student": networks["student"], "ensemble": ensemble_of(networks)}

  return taught._replace(init=init, predict=predict, export=export)


def generation_name(number: int) -> str:
  """Return the name of a generation as a participant and as a phase."""
  return f"generation_{number}"


def _phases(setup: Setup) -> list[PhaseSpec]:
  check_something_learns(setup)
  hyperparameters = setup.hyperparameters
  if hyperparameters.form == "confidence" and not hyperparameters.weight:
    raise ConfigError("method.weight=0.0: expected a number > 0 with form='confidence'")
  if hyperparameters.form == "confidence" and hyperparameters.standardize:
    raise ConfigError(
      "method.standardize=True: expected False with form='confidence', which weights labels and "
      "compares no logits"
    )
  # All generations have the same learning rate: they differ in their teachers alone.
  first = PhaseSpec(
    BASELINE,
    supervised(setup.student),
    learning_rate=hyperparameters.learning_rate,
    role="baseline",
  )
  found = [first]
  for generation in range(1, hyperparameters.generations + 1):
    inherit = {
      generation_name(earlier): f"{phase.name}/student" for earlier, phase in enumerate(found)
    }
    distillation = _from_generation(setup, generation_name(generation - 1))
    # With form="confidence" the distillation itself contains the labels.
    label_weight = 0.0 if hyperparameters.form == "confidence" else hyperparameters.label_weight
    found.append(
      PhaseSpec(
        generation_name(generation),
        born_again(setup.student, [distillation], generation=generation, label_weight=label_weight),
        inherit,
        learning_rate=hyperparameters.learning_rate,
        seed_offset=generation * _NEXT_GENERATION,
      )
    )
  return found


def _from_generation(setup: Setup, teacher: str) -> Distillation:
  """Return the distillation of a generation from the previous one."""
  hyperparameters = setup.hyperparameters
  if hyperparameters.form == "confidence":
    loss: Loss = whole_batch(
      losses.confidence_weighted_by_teacher_max,
      labels=True,
      reason="which divides by the sum of the label weights of a batch",
    )
    return Distillation("confident_labels", loss, hyperparameters.weight, teacher)
  options = {
    "temperature": hyperparameters.temperature,
    "standardize": hyperparameters.standardize,
  }
  if hyperparameters.form == "permuted":
    return Distillation("permuted", permuted(**options), hyperparameters.weight, teacher)
  loss = per_example(losses.knowledge_distillation, **options)
  return Distillation("kd", loss, hyperparameters.weight, teacher)


def permuted(temperature: float, standardize: bool = False) -> Loss:
  """Return `losses.dark_knowledge_permuted` with a key of the step as a `Loss`."""

  def loss(student: Output, teacher: Output, batch: Batch, context: Context) -> Terms:
    rng = key_for(context.rng, "permuted")
    return losses.dark_knowledge_permuted(
      student,
      teacher,
      rng=rng,
      temperature=temperature,
      standardize=standardize,
      where=batch.mask,
    )

  return loss


METHOD = Method(
  "born-again networks: each generation learns from the previous one (Furlanello et al., 2018)",
  {
    # Number of generations after the first, which learns from labels alone.
    "generations": integer(3, minimum=1, maximum=64),
    # Which output of the teacher is used: its probabilities, its confidence per example as a weight
    # of the labels (CWTM), or its probabilities with all but the largest permuted (DKPP).
    "form": choice("distribution", ("distribution", "confidence", "permuted")),
    "weight": number(1.0),
    # 0 trains without labels.
    "label_weight": number(1.0),
    "temperature": number(1.0, exclusive=True),
    **STANDARDIZE,
  },
  phases=_phases,
  source="Furlanello et al., Born-Again Neural Networks, ICML 2018",
  without_teacher=True,
)
