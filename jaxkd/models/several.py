"""A student that ends in the last layers of several teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxkd.errors import unknown_name
from jaxkd.models.copies import separate
from jaxkd.models.spliced import needed_variables, signed_stages, split_stages
from jaxkd.types import Array, Network, Output


class ReusedClassifiers(nn.Module):
  """A student's encoder, and for each teacher a projector and the teacher's layers from a stage on.

  The encoder runs once; the logits are the weighted mean of the teachers'. The teachers' parts
  always run in evaluation mode. The variables are {"params": {"student": ..., "projectors_NAME":
  ..., "teachers_NAME": ...}, "batch_stats": ...}, with only what runs.

  Its stages are the student's up to `student_stage`. With the same surface as other models
  (`stages`, `encode`, `resume`) it can be a teacher in its turn.

  Attributes:
    student: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    projectors: name -> `__call__(features, train)`, from the student's feature to that teacher's.
    teachers: name -> a model with `stages` and `resume`.
    shares: name -> weight of its logits in the mean.
    student_stage: the student's last stage that is used.
    teacher_stage: the teachers' stage that the projected features stand for.

  Source: this project's form of SimKD with several teachers; see `jaxkd.schemes.simkd`.
  """

  student: nn.Module
  projectors: Mapping[str, nn.Module]
  teachers: Mapping[str, nn.Module]
  shares: Mapping[str, float]
  student_stage: str = "stage3"
  teacher_stage: str = "stage3"

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features, shallow to deep."""
    before, _ = split_stages(self.student, self.student_stage, "student")
    return (*before, self.student_stage)

  @property
  def signed_stages(self) -> tuple[str, ...]:
    """The stages whose features have both signs."""
    return tuple(stage for stage in self.stages if stage in signed_stages(self.student))

  def __call__(self, images: Array, train: bool = False) -> Output:
    """The mean logits, and the features of the student's encoder.

    Raises:
      ConfigError: for a `student_stage` or `teacher_stage` that a model does not have.
      ValueError: if a projected map is not one its teacher can go on from.
    """
    encoded = self.encode(images, train)
    logits = self._classified(encoded.features[self.student_stage], train)
    return Output(logits, encoded.features, encoded.preactivations)

  def encode(self, images: Array, train: bool = False, to_stage: str | None = None) -> Output:
    """Features up to and including `to_stage`, by default the last, without logits."""
    to_stage = to_stage or self.student_stage
    self._check(to_stage)
    return self.student.encode(images, train, to_stage)

  def resume(
    self, features: Array, from_stage: str, train: bool = False, to_stage: str | None = None
  ) -> Output:
    """Continues from the features of `from_stage`; as the models' own `resume`."""
    for stage in (from_stage, to_stage or from_stage):
      self._check(stage)
    encoded = Output()
    if from_stage != self.student_stage:
      stop = to_stage or self.student_stage
      encoded = self.student.resume(features, from_stage, train, to_stage=stop)
      features = encoded.features.get(self.student_stage, features)
    if to_stage is not None:
      return encoded
    return Output(self._classified(features, train), encoded.features, encoded.preactivations)

  def _classified(self, features: Array, train: bool) -> Array:
    """The mean of the logits through every teacher."""
    for teacher in self.teachers.values():
      split_stages(teacher, self.teacher_stage, "teacher")
    return sum(
      self.shares[name]
      * teacher.resume(
        self.projectors[name](features, train), self.teacher_stage, train=False
      ).logits
      for name, teacher in self.teachers.items()
    )

  def _check(self, stage: str) -> None:
    if stage not in self.stages:
      raise unknown_name("stage", stage, self.stages)


def reuse_classifiers(
  student: nn.Module,
  projectors: Mapping[str, nn.Module],
  teachers: Mapping[str, nn.Module],
  student_variables: Mapping[str, Any],
  projector_variables: Mapping[str, Mapping[str, Any]],
  teacher_variables: Mapping[str, Mapping[str, Any]],
  *,
  shares: Mapping[str, float],
  student_stage: str = "stage3",
  teacher_stage: str = "stage3",
  image_shape: tuple[int, int, int],
) -> Network:
  """A SimKD student of several teachers as one network, with the variables it needs.

  Args:
    student: as in ReusedClassifiers; also its `projectors`, `teachers`, `shares` and stages.
    projectors: see `student`.
    teachers: see `student`.
    student_variables: the student's Flax variables, {"params": ..., "batch_stats": ...}.
    projector_variables: name -> the projector's.
    teacher_variables: name -> the teacher's.
    shares: see `student`.
    student_stage: the student's last stage that is used.
    teacher_stage: the teachers' stage that the projected maps stand for.
    image_shape: (H, W, C) of the images; which variables are needed is found by tracing.

  Returns:
    The ReusedClassifiers and its variables, the same arrays, not copies.

  Raises:
    ConfigError: for an unknown stage, or variables that are missing or of another shape.
    ValueError: as ReusedClassifiers.
  """
  # Clones, because linen would share the parameters of one module given twice.
  module = ReusedClassifiers(
    separate(student),
    {name: separate(projector) for name, projector in projectors.items()},
    {name: separate(teacher) for name, teacher in teachers.items()},
    dict(shares),
    student_stage,
    teacher_stage,
  )
  given = {
    "student": student_variables,
    **{f"projectors_{name}": variables for name, variables in projector_variables.items()},
    **{f"teachers_{name}": variables for name, variables in teacher_variables.items()},
  }
  return Network(module, needed_variables(module, given, image_shape))
