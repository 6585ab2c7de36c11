"""The types of a method: `Setup` is its input, `PhaseSpec` its output."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.fields import Fields
from jaxkd.methods.distillation import Distillation
from jaxkd.methods.phase_spec import PhaseSpec as PhaseSpec
from jaxkd.preprocessing import Converted
from jaxkd.shapes import InputShape, batched
from jaxkd.types import Output

Shape = tuple[int, ...]
# (stage of the student, stage of the teacher)
StagePair = tuple[str, str]

# Names of phases. Directories of checkpoints depend on them, initial weights do not.
BASELINE = "alone"
WARMUP = "warmup"
DISTILLED = "distilled"


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A teacher network.

  Attributes:
    module: the model, or a `jaxkd.methods.Table` of its logits.
    output: the shapes it returns.
    label: its name in tables.
    field: config field and value that name it, for errors.
    converted: the model with conversion of its images, if it was trained on other images than the
      run's.
    accuracy: accuracy on test images that is stored with its weights; None if there is none.
    notes: lines about the images that it receives.
  """

  module: Any
  output: Output
  label: str
  field: str = "the teacher"
  converted: Converted | None = None
  accuracy: float | None = None
  notes: tuple[str, ...] = ()

  @property
  def model(self) -> Any:
    """The model, with conversion of its images if needed, as an argument of schemes."""
    return self.converted or self.module

  @property
  def num_classes(self) -> int:
    """Number of classes that it predicts; 0 without logits."""
    return 0 if self.output.logits is None else self.output.logits.shape[-1]


@dataclasses.dataclass(frozen=True)
class Setup:
  """The student, the teachers and the hyperparameters that a method builds its phases from.

  Attributes:
    student: the model that learns.
    student_output: the shapes it returns; a tuple with one Output per exit if it has several exits.
    teachers: participant name -> Teacher; the first is called "teacher". Empty for methods that
      train without one.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`).
    options: fields of every trained module: the axis of cross-device statistics, the dtype.
    epochs: epochs of the student.
    steps_per_epoch: updates of the student per epoch.
    rows: 1 more than the largest of `Batch.indices` of the student's examples: rows of a table or
      bank by example.
    examples: the student's training examples, with `labels` (N, ...) and `indices` (N,), for a
      memory of each of them (`jaxkd.data.Examples`).
    hyperparameters: the config's "method" section; in a sum of methods, the part of this method.
    create: name -> model for the same data, for methods that train further networks; and a config
      field, by default method.models, for errors.
    shares: participant name -> a teacher's share of the objective; they sum to 1.
    teacher_name: the teacher that a distillation is built for.
  """

  student: nn.Module
  student_output: Output | tuple[Output, ...]
  teachers: Mapping[str, Teacher]
  image_shape: InputShape
  options: Mapping[str, Any]
  epochs: int
  steps_per_epoch: int
  hyperparameters: Any
  create: Callable[..., nn.Module]
  rows: int = 0
  examples: Any = None
  shares: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"teacher": 1.0})
  teacher_name: str = "teacher"

  @property
  def share(self) -> float:
    """Share of the teacher `teacher_name`."""
    return self.shares[self.teacher_name]

  @property
  def teacher(self) -> Teacher:
    """The teacher `teacher_name`."""
    return self.teachers[self.teacher_name]

  @property
  def is_first(self) -> bool:
    """True for the first teacher only, for terms that are built once whatever the teachers."""
    return self.teacher_name == next(iter(self.teachers), "teacher")

  @property
  def plain_output(self) -> Output:
    """The shapes that a student with a single output returns."""
    assert isinstance(self.student_output, Output)
    return self.student_output

  @property
  def models(self) -> dict[str, Any]:
    """The teachers' models by participant name, as an argument of schemes."""
    return {name: teacher.model for name, teacher in self.teachers.items()}

  def for_teacher(self, name: str) -> Setup:
    """Return the setup with another `teacher_name`."""
    return dataclasses.replace(self, teacher_name=name)

  def named(self, name: str) -> str:
    """Return `name` for the first teacher, "NAME_TEACHER" for any other."""
    return name if self.teacher_name == "teacher" else f"{name}_{self.teacher_name}"

  def shapes(self, stage: StagePair | str, where: str = "features") -> tuple[Shape, Shape]:
    """Return the student's and the teacher's shape at a stage, batch included."""
    ours, theirs = (stage, stage) if isinstance(stage, str) else stage
    return (
      feature_shape(self.plain_output, ours, "student", where),
      feature_shape(self.teacher.output, theirs, "teacher", where),
    )

  def all_shapes(self, where: str = "features") -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Return the student's and the teacher's shapes by stage, shallow to deep, batch included."""
    return (
      self.student_shapes(where),
      _in_order(self.teacher.module, getattr(self.teacher.output, where)),
    )

  def student_shapes(self, where: str = "features") -> dict[str, Shape]:
    """Return the student's shapes by stage, shallow to deep, batch included."""
    return _in_order(self.student, getattr(self.plain_output, where))

  def deepest(self, stages: Sequence[StagePair], where: str = "features") -> str:
    """Return the stage up to which the student must run to compute all these stages."""
    wanted = {ours for ours, _ in stages}
    order = tuple(self.student.stages)
    views = getattr(self.student, "views", {})
    deepest = max(order.index(views.get(ours, ours)) for ours in wanted)
    images = batched(self.image_shape, (2,))
    key = jax.random.key(0)
    for stage in order[deepest:]:
      # Some preactivations are computed by the next stage.
      encode = functools.partial(self.student.init_with_output, method="encode", to_stage=stage)
      output, _ = jax.eval_shape(encode, key, images)
      if wanted <= set(getattr(output, where)):
        return stage
    raise unknown_name(f"stage of the student with {where}:", min(wanted), order)

  def compared(self, stages: Sequence[StagePair], where: str = "features") -> str:
    """Return a line with the compared stages and their sizes."""
    shown = []
    for pair in stages:
      if pair == ("images", "images"):
        shown.append("images")
        continue
      ours, theirs = (sizes(shape) for shape in self.shapes(pair, where))
      shown.append(f"{pair[0]} {ours} with {pair[1]} {theirs}")
    return f"{', '.join(shown)} of the {self.teacher_name}"


@dataclasses.dataclass(frozen=True)
class Term:
  """A distillation of a method, and a line about the arrays that it compares.

  Attributes:
    distillation: the distillation.
    compares: the stages and their sizes, shown before training; "" shows no line.
  """

  distillation: Distillation
  compares: str = ""


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to train a student: an entry of `jaxkd.methods.METHODS`.

  A method with `distillations` returns terms of an objective with frozen teachers: such methods can
  be added ("kd+at"), ramped, and used with several teachers. A method with `phases` has a scheme of
  its own. A method with neither trains from labels alone.

  Attributes:
    summary: one line for listings.
    fields: its hyperparameters, the config's "method" section.
    distillations: its terms for the teacher `Setup.teacher_name`.
    source: paper and published code that it follows.
    before: phases that come before the main one, such as that of a paraphraser.
    warmup: defaults of a first phase, in which the student's layers up to the deepest matched stage
      learn from the method's terms alone; None if no such variant was published.
    deepest: the last stage of the student that the terms reach; needed with `warmup`.
    label_weight: default weight of the cross-entropy.
    phases: the phases of a method with its own scheme, in order. A phase named "alone" is also the
      baseline.
    without_teacher: whether those phases need no trained teacher.
    baseline: the phase of the baseline, if that is not one output trained from labels.
    takes_exits: whether the student may have several exits of its own.
    needs: arrays that the networks must return: "logits" alone; "features", of any rank; "maps",
      (B, H, W, C); "dense", maps or logits of every pixel; "preactivations", of any rank; "stages"
      that the student can be cut at.
    needs_network: whether the teacher must be a network although the method compares no features:
      for gradients, or its classifier. Stored logits are refused then, as with other `needs`.
    same_classes: reason why the teacher must predict the student's classes, for the error message;
      "" if no logits are compared.
    multi_label: whether its terms are also those of multi-hot labels (`Batch.multi_label`), for
      `data.labels="multi"`.
    only: classes of the students that it trains; () is any.
  """

  summary: str
  fields: Fields
  distillations: Callable[[Setup], Sequence[Term | Distillation]] | None = None
  source: str = ""
  before: Callable[[Setup], Sequence[PhaseSpec]] | None = None
  warmup: Warmup | None = None
  deepest: Callable[[Setup], str] | None = None
  label_weight: float = 1.0
  phases: Callable[[Setup], Sequence[PhaseSpec]] | None = None
  without_teacher: bool = False
  baseline: Callable[[Setup], PhaseSpec] | None = None
  takes_exits: bool = False
  needs: Literal["logits", "features", "maps", "dense", "preactivations", "stages"] = "logits"
  same_classes: str = "compares logits"
  needs_network: bool = False
  multi_label: bool = False
  only: tuple[type, ...] = ()

  @property
  def takes_logits(self) -> bool:
    """True if a teacher's logits are enough, so that they can come from a file."""
    return self.distillations is not None and self.needs == "logits" and not self.needs_network

  def why_same_classes(self, hyperparameters: Any) -> str:
    """Return `same_classes` for these hyperparameters: a second phase may compare logits."""
    if not self.same_classes and hyperparameters.get("two_stage"):
      weight = hyperparameters.second_kd_weight
      if weight:
        return (
          f"compares logits in its second stage (method.second_kd_weight={weight:g}; "
          "0 leaves them out)"
        )
    return self.same_classes

  @property
  def distils(self) -> bool:
    """True if the student learns from outputs of a network (a teacher, a peer, itself)."""
    return self.distillations is not None or self.phases is not None


@dataclasses.dataclass(frozen=True)
class Warmup:
  """Defaults of a method with two phases.

  Attributes:
    default: default of `two_stage`.
    epochs: epochs of the first phase.
    label_weight: weight of the cross-entropy in the second phase.
    kd_weight: weight of softened logits in the second phase.
    temperature: temperature of those logits.
    squared_temperature: whether their term is scaled by the squared temperature.
    kd_start: factor on `kd_weight` at the start of the second phase; it changes linearly to 1 by
      the end. 1 keeps the weight constant.
  """

  default: bool
  epochs: int
  label_weight: float
  kd_weight: float
  temperature: float = 4.0
  squared_temperature: bool = True
  kd_start: float = 1.0


def check_something_learns(setup: Setup) -> None:
  """Raise a ConfigError if the weights of both the labels and the distillation are 0."""
  hyperparameters = setup.hyperparameters
  if not hyperparameters.weight and not hyperparameters.label_weight:
    raise ConfigError("method.weight=0.0 and method.label_weight=0.0: expected one of them > 0")


def sizes(shape: Shape) -> str:
  """Return a feature's shape without the batch, as "28x28x4"."""
  return "x".join(map(str, shape[1:]))


def feature_shape(output: Output, stage: str, owner: str, where: str = "features") -> Shape:
  """Return the shape of a stage's features or preactivations.

  Raises:
    ConfigError: if the model has no such stage, naming the stages that it has.
  """
  arrays = getattr(output, where)
  if stage not in arrays:
    raise unknown_name(f"stage of the {owner}", stage, arrays)
  return arrays[stage].shape


def _in_order(module: nn.Module, arrays: Mapping[str, Any]) -> dict[str, Shape]:
  """Return shapes by stage in the order of the model's stages, which tracing does not keep."""
  known = [*(getattr(module, "stages", ()) or arrays), *getattr(module, "views", ())]
  order = [stage for stage in known if stage in arrays]
  return {stage: arrays[stage].shape for stage in order}
