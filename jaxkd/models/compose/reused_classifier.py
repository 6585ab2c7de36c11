"""SimKD students at inference: an encoder in front of one or several teachers' classifiers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flax import linen as nn

from jaxkd.errors import unknown_name
from jaxkd.models.compose.parts import needed_variables, separate, signed_stages, split_stages
from jaxkd.shapes import InputShape
from jaxkd.types import Array, Network, Output


class ReusedClassifier(nn.Module):
  """A student's encoder, a projector, and the teacher's layers after a stage.

  This is a SimKD student at inference. The teacher's layers always run in evaluation mode. The
  variables are {"params": {"student": ..., "projector": ..., "teacher": ...}, "batch_stats": ...};
  the student has no classifier there, the teacher no early layers.

  Stages: those of the student before `student_stage`, then `teacher_stage`, which is the projected
  feature, then the later stages of the teacher. If both have a stage of one name, the teacher's is
  kept. With `stages`, `encode` and `resume`, as other models have them, it can itself be a teacher.

  Attributes:
    student: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    projector: `__call__(features, train)`, from the student's feature to the shape of the teacher's
      feature at `teacher_stage` (maps may have another size), with the same activation.
    teacher: a model with `stages` and `resume`.
    student_stage: the last stage of the student that is used.
    teacher_stage: the stage of the teacher whose feature the projected feature replaces.

  Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022;
  teacher_stage "stage3" is SimKD, an earlier one reuses more of the teacher (SimKD+, ++).
  """

  student: nn.Module
  projector: nn.Module
  teacher: nn.Module
  student_stage: str = "stage3"
  teacher_stage: str = "stage3"

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features, shallow to deep."""
    reused = self._reused
    return tuple(stage for stage in self._encoded if stage not in reused) + reused

  @property
  def signed_stages(self) -> tuple[str, ...]:
    """The stages whose features have both signs, as declared by the network of each stage."""
    reused = self._reused
    return tuple(
      stage
      for stage in self.stages
      if stage in signed_stages(self.teacher if stage in reused else self.student)
    )

  @property
  def _encoded(self) -> tuple[str, ...]:
    return split_stages(self.student, self.student_stage, "student")[0]

  @property
  def _reused(self) -> tuple[str, ...]:
    return (self.teacher_stage, *split_stages(self.teacher, self.teacher_stage, "teacher")[1])

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Logits of the teacher's classifier, and every stage's features.

    Raises:
      ConfigError: for a `student_stage` or `teacher_stage` that the model does not have.
      ValueError: for a projected feature that the teacher cannot resume from.
    """
    return self._from_encoder(self.student.encode(images, train, self.student_stage), train, None)

  def encode(self, images: Array, train: bool = False, to_stage: str = "pooled") -> Output:
    """Features up to and including `to_stage`, without logits."""
    self._check(to_stage)
    if to_stage not in self._reused:
      return self.student.encode(images, train, to_stage)
    encoded = self.student.encode(images, train, self.student_stage)
    return self._from_encoder(encoded, train, to_stage)

  def resume(
    self, features: Array, from_stage: str, train: bool = False, to_stage: str | None = None
  ) -> Output:
    """Continue from the features of `from_stage`; see StagedModel.resume."""
    for stage in (from_stage, to_stage or from_stage):
      self._check(stage)
    if from_stage in self._reused:
      return self._through_teacher(features, from_stage, to_stage)
    stop = to_stage if to_stage not in (None, *self._reused) else self.student_stage
    encoded = self.student.resume(features, from_stage, train, to_stage=stop)
    # A stage name that both networks have means the teacher's stage.
    ends_before = to_stage is not None and to_stage not in self._reused
    return encoded if ends_before else self._from_encoder(encoded, train, to_stage)

  def _from_encoder(self, encoded: Output, train: bool, to_stage: str | None) -> Output:
    """Project the student's last feature and run the teacher's later layers."""
    projected = self.projector(encoded.features[self.student_stage], train)
    rest = self._through_teacher(projected, self.teacher_stage, to_stage)

    def kept(arrays: Mapping[str, Array]) -> dict[str, Array]:
      shallower = set(self._encoded) - set(self._reused)
      return {stage: array for stage, array in arrays.items() if stage in shallower}

    return dataclasses.replace(
      rest,
      features={**kept(encoded.features), self.teacher_stage: projected, **rest.features},
      preactivations={**kept(encoded.preactivations), **rest.preactivations},
    )

  def _through_teacher(self, features: Array, from_stage: str, to_stage: str | None) -> Output:
    # Pass to_stage only if it is set: a teacher's `resume` need not have that argument.
    stop = {} if to_stage is None else {"to_stage": to_stage}
    return self.teacher.resume(features, from_stage, train=False, **stop)

  def _check(self, stage: str) -> None:
    if stage not in self.stages:
      raise unknown_name("stage", stage, self.stages)


def reuse_classifier(
  student: Network,
  projector: Network,
  teacher: Network,
  *,
  student_stage: str = "stage3",
  teacher_stage: str = "stage3",
  image_shape: InputShape,
) -> Network:
  """Combine the networks of a SimKD student into one, with only the variables that it uses.

  Args:
    student: as in ReusedClassifier, with its Flax variables.
    projector: as in ReusedClassifier, with its Flax variables.
    teacher: as in ReusedClassifier, with its Flax variables.
    student_stage: as in ReusedClassifier.
    teacher_stage: as in ReusedClassifier.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`); tracing finds which
      variables are needed.

  Returns:
    The ReusedClassifier and its variables; the arrays are not copied.

  Raises:
    ConfigError: for an unknown stage, or variables that are missing or of another shape.
    ValueError: as ReusedClassifier.
  """
  split_stages(student.module, student_stage, "student")
  split_stages(teacher.module, teacher_stage, "teacher")
  parts = {"student": student, "projector": projector, "teacher": teacher}
  # Copies: linen would share the variables of a module instance that is given twice.
  module = ReusedClassifier(
    **{name: separate(network.module) for name, network in parts.items()},
    student_stage=student_stage,
    teacher_stage=teacher_stage,
  )
  variables = {name: network.variables for name, network in parts.items()}
  return Network(module, needed_variables(module, variables, image_shape))


class ReusedClassifiers(nn.Module):
  """A student's encoder, and for each teacher a projector and the teacher's layers after a stage.

  The encoder runs once; the logits are the weighted mean of the teachers' logits. The teachers'
  layers always run in evaluation mode. The variables are {"params": {"student": ...,
  "projectors_NAME": ..., "teachers_NAME": ...}, "batch_stats": ...}, without those of layers that
  do not run.

  Stages: those of the student up to `student_stage`. With `stages`, `encode` and `resume`, as other
  models have them, it can itself be a teacher.

  Attributes:
    student: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    projectors: name -> `__call__(features, train)`, from the student's feature to that teacher's.
    teachers: name -> a model with `stages` and `resume`.
    shares: name -> weight of that teacher's logits in the mean.
    student_stage: the last stage of the student that is used.
    teacher_stage: the stage of every teacher whose feature the projected feature replaces.

  Source: SimKD with several teachers, in this project's form; see `jaxkd.methods.simkd`.
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
      ValueError: for a projected feature that its teacher cannot resume from.
    """
    encoded = self.encode(images, train)
    logits = self._classified(encoded.features[self.student_stage], train)
    return Output(logits, encoded.features, encoded.preactivations)

  def encode(self, images: Array, train: bool = False, to_stage: str | None = None) -> Output:
    """Features up to and including `to_stage` (None: `student_stage`), without logits."""
    to_stage = to_stage or self.student_stage
    self._check(to_stage)
    return self.student.encode(images, train, to_stage)

  def resume(
    self, features: Array, from_stage: str, train: bool = False, to_stage: str | None = None
  ) -> Output:
    """Continue from the features of `from_stage`; see StagedModel.resume."""
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
    """The weighted mean of the teachers' logits."""
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
  student: Network,
  projectors: Mapping[str, Network],
  teachers: Mapping[str, Network],
  *,
  shares: Mapping[str, float],
  student_stage: str = "stage3",
  teacher_stage: str = "stage3",
  image_shape: InputShape,
) -> Network:
  """Combine the networks of a SimKD student with several teachers into one.

  Args:
    student: as in ReusedClassifiers, with its Flax variables.
    projectors: as in ReusedClassifiers, with their Flax variables.
    teachers: as in ReusedClassifiers, with their Flax variables.
    shares: as in ReusedClassifiers.
    student_stage: as in ReusedClassifiers.
    teacher_stage: as in ReusedClassifiers.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`); tracing finds which
      variables are needed.

  Returns:
    The ReusedClassifiers and its variables, without those of layers that do not run; the arrays are
    not copied.

  Raises:
    ConfigError: for an unknown stage, or variables that are missing or of another shape.
    ValueError: as ReusedClassifiers.
  """
  # Copies: linen would share the variables of a module instance that is given twice.
  module = ReusedClassifiers(
    separate(student.module),
    {name: separate(projector.module) for name, projector in projectors.items()},
    {name: separate(teacher.module) for name, teacher in teachers.items()},
    dict(shares),
    student_stage,
    teacher_stage,
  )
  variables = {
    "student": student.variables,
    **{f"projectors_{name}": network.variables for name, network in projectors.items()},
    **{f"teachers_{name}": network.variables for name, network in teachers.items()},
  }
  return Network(module, needed_variables(module, variables, image_shape))
