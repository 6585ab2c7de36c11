"""What a recipe is made of: the networks it is given, the method, the trainings it asks for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from jaxkd.config import Fields
from jaxkd.errors import unknown_name
from jaxkd.preprocessing import Converted
from jaxkd.schemes import Distillation
from jaxkd.types import Output, Scheme

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network that teaches.

  Attributes:
    module: the model.
    output: the shapes it returns.
    label: what it is called in tables.
    field: of the config, with its value, that names it, for errors.
    converted: the model with its images converted, where it was trained on others than the run's.
    accuracy: on test images, that it is said to have; None if nothing is said.
    notes: lines about the images that it is given.
  """

  module: nn.Module
  output: Output
  label: str
  field: str = "the teacher"
  converted: Converted | None = None
  accuracy: float | None = None
  notes: tuple[str, ...] = ()

  @property
  def model(self) -> nn.Module | Converted:
    """What schemes take."""
    return self.converted or self.module

  @property
  def num_classes(self) -> int:
    """Classes that it predicts; 0 without logits."""
    return 0 if self.output.logits is None else self.output.logits.shape[-1]


@dataclasses.dataclass(frozen=True)
class Pair:
  """What a method builds its schemes from: a student and the teacher at hand.

  Attributes:
    student: the model that learns.
    student_output: the shapes it returns; a tuple, one for each exit, if it has exits of its own.
    teachers: participant name -> Teacher; the first is called "teacher". Empty for methods that
      train without one.
    image_shape: (H, W, C).
    options: fields every trained module takes: the axis of cross-device statistics, the dtype.
    epochs: the student's.
    steps_per_epoch: updates of the student per epoch.
    hyperparameters: the config's "method" section, or the part of it that is the method's.
    create: name -> a model like the student's, for methods that train other networks beside it.
    shares: participant name -> a teacher's share of the objective; they sum to 1.
    at: which of the teachers is at hand.
  """

  student: nn.Module
  student_output: Output | tuple[Output, ...]
  teachers: Mapping[str, Teacher]
  image_shape: tuple[int, int, int]
  options: Mapping[str, Any]
  epochs: int
  steps_per_epoch: int
  hyperparameters: ml_collections.ConfigDict
  create: Callable[[str], nn.Module]
  shares: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"teacher": 1.0})
  at: str = "teacher"

  @property
  def share(self) -> float:
    """That of the teacher at hand."""
    return self.shares[self.at]

  @property
  def teacher(self) -> Teacher:
    """The teacher at hand."""
    return self.teachers[self.at]

  @property
  def plain_output(self) -> Output:
    """The shapes that a student without exits of its own returns."""
    assert isinstance(self.student_output, Output)
    return self.student_output

  @property
  def models(self) -> dict[str, nn.Module | Converted]:
    """Every teacher's model by participant name, as schemes take it."""
    return {name: teacher.model for name, teacher in self.teachers.items()}

  def named(self, name: str) -> str:
    """`name`, made different for every teacher."""
    return name if self.at == "teacher" else f"{name}_{self.at}"

  def shapes(self, stage: tuple[str, str] | str, where: str = "features") -> tuple[Shape, Shape]:
    """The student's and the teacher's shape at a stage, batch included."""
    ours, theirs = (stage, stage) if isinstance(stage, str) else stage
    return (
      feature_shape(self.plain_output, ours, "student", where),
      feature_shape(self.teacher.output, theirs, "teacher", where),
    )

  def all_shapes(self, where: str = "features") -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The student's and the teacher's shapes by stage, shallow to deep, batch included."""
    return (
      self.student_shapes(where),
      _in_order(self.teacher.module, getattr(self.teacher.output, where)),
    )

  def student_shapes(self, where: str = "features") -> dict[str, Shape]:
    """The student's shapes by stage, shallow to deep, batch included."""
    return _in_order(self.student, getattr(self.plain_output, where))

  def deepest(self, stages: Sequence[tuple[str, str]], where: str = "features") -> str:
    """The stage up to which the student must run to give all that is named of it."""
    wanted = {ours for ours, _ in stages}
    order = tuple(self.student.stages)
    deepest = max(order.index(ours) for ours in wanted)
    images = jax.ShapeDtypeStruct((2, *self.image_shape), jnp.float32)
    key = jax.random.key(0)
    for stage in order[deepest:]:
      # Some preactivations are made by the stage that follows.
      encode = functools.partial(self.student.init_with_output, method="encode", to_stage=stage)
      output, _ = jax.eval_shape(encode, key, images)
      if wanted <= set(getattr(output, where)):
        return stage
    raise unknown_name(f"stage of the student with {where}:", min(wanted), order)

  def compared(self, stages: Sequence[tuple[str, str]], where: str = "features") -> str:
    """Which stages are compared, with their sizes, for a line that tells it."""
    shown = []
    for pair in stages:
      if pair == ("images", "images"):
        shown.append("images")
        continue
      ours, theirs = (sizes(shape) for shape in self.shapes(pair, where))
      shown.append(f"{pair[0]} {ours} with {pair[1]} {theirs}")
    return f"{', '.join(shown)} of the {self.at}"


@dataclasses.dataclass(frozen=True)
class Training:
  """One run of training that a method asks for; the plan gives it data and an optimizer.

  Attributes:
    name: of the stage.
    scheme: who learns from whom.
    inherit: participant -> "stage/participant" of an earlier stage, teachers included.
    epochs: passes over the student's examples; None takes the student's number.
    learning_rate: None takes the student's.
    reported: the predictor that stands for it; "" where there is none yet.
    label: what the trained network is called in tables; "" takes the student's name.
    reuses_classifier: whether the student predicts through the teachers' classifiers.
    gives: participant of the method's next training -> the participant of this one it starts as.
    turns: participants of which one is updated at a step, in this order; empty updates all.
    seed_offset: what it adds to the experiment's seed, for networks that must start differently.
    notes: what a reader wants to know before it starts, such as the stages that are compared.
  """

  name: str
  scheme: Scheme
  inherit: Mapping[str, str] = dataclasses.field(default_factory=dict)
  epochs: int | None = None
  learning_rate: float | None = None
  reported: str = "student"
  label: str = ""
  reuses_classifier: bool = False
  gives: Mapping[str, str] = dataclasses.field(default_factory=dict)
  turns: tuple[str, ...] = ()
  seed_offset: int = 0
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to train a student.

  One with `distillations` is a summand of an objective under frozen teachers: such methods add up
  ("kd+at"), ramp, and take several teachers. One with `trainings` is a scheme of its own. One
  with neither trains from labels alone.

  Attributes:
    summary: one line for listings.
    fields: its own hyperparameters, of the config's "method" section.
    distillations: what is matched with the teacher at hand.
    before: trainings that come before its own, such as of a connector.
    warmup: the defaults of a first stage, in which the student's layers up to the deepest one
      matched learn the method's terms alone; None where no such variant was published.
    deepest: the last stage of the student that the terms reach; needed with `warmup`.
    label_weight: of the cross-entropy, by default.
    trainings: the trainings of a scheme of its own, in their order. One that is called "alone"
      stands for the student alone.
    without_teacher: whether those trainings need no network that was trained before.
    baseline: the student alone that it is compared with, where that is not one output trained by
      the labels.
    takes_exits: whether the student may have several exits of its own.
    needs: what the networks must give it: "logits" alone; "features", of any rank; "maps",
      (B, H, W, C); "preactivations", of any rank; "stages" that the student can be cut at.
    same_classes: in words, why the teacher must predict the student's classes; "" where it need
      not, since no logits are compared.
  """

  summary: str
  fields: Fields
  distillations: Callable[[Pair], Sequence[Distillation]] | None = None
  before: Callable[[Pair], Sequence[Training]] | None = None
  warmup: Warmup | None = None
  deepest: Callable[[Pair], str] | None = None
  label_weight: float = 1.0
  trainings: Callable[[Pair], Sequence[Training]] | None = None
  without_teacher: bool = False
  baseline: Callable[[Pair], Training] | None = None
  takes_exits: bool = False
  needs: Literal["logits", "features", "maps", "preactivations", "stages"] = "logits"
  same_classes: str = "compares logits"

  def why_same_classes(self, own: ml_collections.ConfigDict) -> str:
    """`same_classes` with these hyperparameters, which may have a second stage of soft targets."""
    if not self.same_classes and own.get("two_stage") and own.second_kd_weight:
      return (
        f"compares logits in its second stage (method.second_kd_weight={own.second_kd_weight:g}; "
        "0 leaves them out)"
      )
    return self.same_classes

  @property
  def distils(self) -> bool:
    """Whether the student learns from some network's predictions, a teacher's or its like's."""
    return self.distillations is not None or self.trainings is not None


@dataclasses.dataclass(frozen=True)
class Warmup:
  """Defaults of a method's two-stage form.

  Attributes:
    default: whether the method runs in two stages unless told otherwise.
    epochs: of the first stage.
    label_weight: of the cross-entropy in the second stage.
    kd_weight: of softened logits in the second stage.
    temperature: of those logits.
    squared_temperature: whether they are scaled by its square.
    kd_start: the factor on `kd_weight` at the start of the second stage, from which it goes
      linearly to 1; 1 keeps it constant.
  """

  default: bool
  epochs: int
  label_weight: float
  kd_weight: float
  temperature: float = 4.0
  squared_temperature: bool = True
  kd_start: float = 1.0


def sizes(shape: Shape) -> str:
  """A feature's shape without the batch, as "28x28x4"."""
  return "x".join(map(str, shape[1:]))


def feature_shape(output: Output, stage: str, owner: str, where: str = "features") -> Shape:
  """The shape of a stage's features, or preactivations.

  Raises:
    ConfigError: if the model has no such stage, naming those it has.
  """
  arrays = getattr(output, where)
  if stage not in arrays:
    raise unknown_name(f"stage of the {owner}", stage, arrays)
  return arrays[stage].shape


def _in_order(module: nn.Module, arrays: Mapping[str, Any]) -> dict[str, Shape]:
  """Shapes by stage in the order of the model's stages, which tracing does not keep."""
  order = [stage for stage in getattr(module, "stages", arrays) if stage in arrays]
  return {stage: arrays[stage].shape for stage in order}
