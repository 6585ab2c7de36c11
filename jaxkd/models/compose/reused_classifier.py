"""A student that predicts through the classifier of its teacher, or of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.layers import separate
from jaxkd.types import Array, Network, Output


class ReusedClassifier(nn.Module):
  """A student's encoder, a projector, and the teacher's layers from a stage on.

  What a SimKD student is at inference. The teacher's part always runs in evaluation mode. The
  variables are {"params": {"student": ..., "projector": ..., "teacher": ...}, "batch_stats": ...},
  with only what runs: no classifier of the student, no early layers of the teacher.

  Stages: the student's before `student_stage`, then `teacher_stage`, which is the projected feature
  under the teacher's name, then the teacher's later ones. Of two stages of one name the teacher's
  is kept. With the same surface as other models (`stages`, `encode`, `resume`) it can be a teacher
  in its turn.

  Attributes:
    student: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    projector: `__call__(features, train)`, from the student's feature to one of the shape the
      teacher gives at `teacher_stage`, maps of any size, after the same activation as there.
    teacher: a model with `stages` and `resume`.
    student_stage: the student's last stage that is used.
    teacher_stage: the teacher's stage that the projected feature stands for.

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
    """The stages whose features have both signs, as in the network that each is taken from."""
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
      ValueError: if the projected map is not one the teacher can go on from.
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
    """Continues from the features of `from_stage`; as the models' own `resume`."""
    for stage in (from_stage, to_stage or from_stage):
      self._check(stage)
    if from_stage in self._reused:
      return self._through_teacher(features, from_stage, to_stage)
    stop = to_stage if to_stage not in (None, *self._reused) else self.student_stage
    encoded = self.student.resume(features, from_stage, train, to_stage=stop)
    # Of a name that both have, the teacher's stage is meant.
    ends_before = to_stage is not None and to_stage not in self._reused
    return encoded if ends_before else self._from_encoder(encoded, train, to_stage)

  def _from_encoder(self, encoded: Output, train: bool, to_stage: str | None) -> Output:
    """Projects the student's last stage and goes on through the teacher."""
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
    # Only asked to stop where it must: a teacher needs no to_stage to be reused to the end.
    stop = {} if to_stage is None else {"to_stage": to_stage}
    return self.teacher.resume(features, from_stage, train=False, **stop)

  def _check(self, stage: str) -> None:
    if stage not in self.stages:
      raise unknown_name("stage", stage, self.stages)


def reuse_classifier(
  student: nn.Module,
  projector: nn.Module,
  teacher: nn.Module,
  student_variables: Mapping[str, Any],
  projector_variables: Mapping[str, Any],
  teacher_variables: Mapping[str, Any],
  *,
  student_stage: str = "stage3",
  teacher_stage: str = "stage3",
  image_shape: tuple[int, int, int],
) -> Network:
  """A distilled SimKD student as one network, with the part of each network's variables it needs.

  Args:
    student: as in ReusedClassifier; also its `projector`, `teacher` and stages.
    projector: see `student`.
    teacher: see `student`.
    student_variables: the student's Flax variables, {"params": ..., "batch_stats": ...}.
    projector_variables: the projector's.
    teacher_variables: the teacher's.
    student_stage: the student's last stage that is used.
    teacher_stage: the teacher's stage that the projected map stands for.
    image_shape: (H, W, C) of the images; which variables are needed is found by tracing.

  Returns:
    The ReusedClassifier and its variables, the same arrays, not copies.

  Raises:
    ConfigError: for an unknown stage, or variables that are missing or of another shape.
    ValueError: as ReusedClassifier.
  """
  split_stages(student, student_stage, "student")
  split_stages(teacher, teacher_stage, "teacher")
  # Clones, because linen would share the parameters of one module given twice.
  module = ReusedClassifier(
    separate(student), separate(projector), separate(teacher), student_stage, teacher_stage
  )
  given = {
    "student": student_variables,
    "projector": projector_variables,
    "teacher": teacher_variables,
  }
  return Network(module, needed_variables(module, given, image_shape))


def needed_variables(
  module: nn.Module, given: Mapping[str, Mapping[str, Any]], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """The variables of a spliced module, taken from those of the networks it consists of.

  Args:
    module: what needs them.
    given: submodule -> the variables of the whole network it is a part of.
    image_shape: (H, W, C) of the images.

  Raises:
    ConfigError: for variables that are missing or of another shape.
  """
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  needed = jax.eval_shape(module.init, jax.random.key(0), images)
  flat = {
    (collection, part, *path): value
    for part, variables in given.items()
    for collection, tree in variables.items()
    for path, value in flatten_dict(tree).items()
  }
  chosen = {}
  for path, like in flatten_dict(needed).items():
    collection, part, *rest = path
    found = f"of shape {jnp.shape(flat[path])}" if path in flat else "missing"
    if found != f"of shape {like.shape}":
      name = "/".join((collection, *rest))
      raise ConfigError(f"{part}_variables: {name} is {found}, not of shape {like.shape}")
    chosen[path] = flat[path]
  return unflatten_dict(chosen)


def signed_stages(model: nn.Module) -> tuple[str, ...]:
  """The stages whose features have both signs, as far as the model says it."""
  return getattr(model, "signed_stages", ())


def split_stages(
  model: nn.Module, stage: str, role: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The stages before and after `stage`.

  Raises:
    ConfigError: for a stage that the model does not have.
  """
  if stage not in model.stages:
    raise unknown_name(f"{role}_stage", stage, model.stages)
  position = model.stages.index(stage)
  return model.stages[:position], model.stages[position + 1 :]


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

  Source: this project's form of SimKD with several teachers; see `jaxkd.methods.simkd`.
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
