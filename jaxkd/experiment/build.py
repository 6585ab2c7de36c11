"""From a config to the phases of an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.build"):
  import ml_collections


from jaxkd import methods, models
from jaxkd.data import UNLABELLED, Dataset, Examples, unseen_classes
from jaxkd.errors import ConfigError
from jaxkd.experiment import networks, own_models
from jaxkd.experiment.best_epoch import with_reference
from jaxkd.experiment.given import NOTHING_GIVEN, Given
from jaxkd.experiment.preparation import (
  check_augmentation,
  evaluation_preparation,
  phase_examples,
  training_preparation,
)
from jaxkd.experiment.preparation import dataset as dataset
from jaxkd.experiment.student_start import started, student_start
from jaxkd.experiment.teachers import teacher_spec, teachers_of, with_tables, with_variables
from jaxkd.experiment.traced import multiply_adds
from jaxkd.experiment.training_fields import recipe_arguments
from jaxkd.export import architectures
from jaxkd.fields import BALANCED
from jaxkd.methods.base import BASELINE, PhaseSpec, Setup, Teacher
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.train import (
  Phase,
  check_phases,
  learning_rate_schedule,
  make_optimizer,
  take_turns,
)
from jaxkd.train import steps_per_epoch as count_steps
from jaxkd.train.evaluate import ACCURACY, AGREEMENT


def phases(
  settings: ml_collections.ConfigDict,
  data: Dataset,
  *,
  traced: bool = True,
  given: Given = NOTHING_GIVEN,
) -> list[Phase]:
  """Build the phases of an experiment: the teachers, the baseline, the distilled student.

  Nothing is compiled: errors in models, stages and shapes follow from shapes alone.

  Args:
    settings: a config that `check_config` accepts.
    data: what `settings.data` names.
    traced: trace every objective, so that what does not fit raises here and not in its first step.
    given: networks in place of those that the config names.

  Raises:
    ConfigError: naming the field and what would be accepted.
  """
  data = as_seen(settings, data)
  name = settings.method.name
  chosen = methods.methods(name).values()
  distils = all(method.distils for method in chosen)
  taught = methods.is_taught(name)
  options = {
    "axis_name": AXIS_NAME if settings.sync_batch_norm else None,
    "dtype": jnp.dtype(settings.compute_dtype),
  }
  if settings.keep == "best" and data.validation is None:
    raise ConfigError("keep='best' needs a validation split, but data.validation=0.0")

  plan: list[Phase] = []
  teachers: dict[str, Teacher] = {}
  if taught or name == "teacher":
    found = teachers_of(settings, data, options, given.teachers)
    for number, (teacher, variables) in enumerate(found):
      called = "teacher" if number == 0 else f"teacher_{number}"
      teachers[called] = teacher
      plan.append(_teacher_phase(called, teacher, variables, settings, data))
    methods.check_classes(settings, teachers, data.num_classes)
  if name == "teacher":
    plan = _with_note(plan, unseen_classes(data))
    return _counted(plan, data) if traced else plan

  model = settings.student.model
  student, student_output = given.student_for(settings, data) or networks.create(
    "student.model", model, data, options, dropout=settings.student.dropout
  )
  student, student_output = own_models.tapped(settings.student, student, student_output, data)
  if settings.student.quantize != "none":
    student = models.quantized(student, settings.student.quantize)
  unwritten = architectures.why_not(student)
  exits = len(student_output) if isinstance(student_output, tuple) else 0
  if distils and exits and not all(method.takes_exits for method in chosen):
    able = [n for n, method in methods.METHODS.items() if method.takes_exits]
    raise ConfigError(
      f"student.model={settings.student.model!r} has {exits} exits of its own, and method "
      f"{name!r} trains a network with one; these train several: {', '.join(able)}"
    )
  seen = phase_examples(settings, "student", data)
  setup = Setup(
    student=student,
    student_output=student_output,
    teachers=teachers,
    image_shape=data.input_shape,
    options=options,
    epochs=settings.student.epochs,
    steps_per_epoch=count_steps(len(seen), settings.batch_size),
    hyperparameters=settings.method,
    rows=int(seen.indices.max(initial=-1)) + 1,
    examples=seen,
    create=lambda model, field="method.models": networks.create(field, model, data, options)[0],
  )
  try:
    specs = methods.phases(setup) if distils else []
    if (settings.baseline or not distils) and not any(spec.name == BASELINE for spec in specs):
      specs = [methods.baseline(setup), *specs]
    start = student_start(settings, data, student)
    for spec in specs:
      phase = _student_phase(spec, settings, data, teachers)
      # An assistant, whose role is a teacher's, does not start from the student's weights.
      plan.append(phase if spec.role == "teacher" else started(phase, start))
    if traced:
      plan = _counted(plan, data)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"method {name!r}: {error}") from error
  check_phases(plan)
  plan = _with_note(plan, unwritten and f"no bundle of the student is written: {unwritten}")
  return _with_note(plan, unseen_classes(data))


def _with_note(plan: list[Phase], note: str) -> list[Phase]:
  """Return the phases, with one more note on the first, if there is one."""
  if not note:
    return plan
  first, *others = plan
  return [dataclasses.replace(first, notes=(note, *first.notes)), *others]


def as_seen(settings: ml_collections.ConfigDict, data: Dataset) -> Dataset:
  """Return the data set with the `image_shape` that the networks see.

  Raises:
    ConfigError: if `data.crop`, `resized_crop` or `cutout` is more than the images have, or the
      inputs or labels cannot be augmented.
  """
  check_augmentation(settings, data)
  if data.image_shape is None:
    return data
  size = settings.data.resized_crop
  height, width, channels = data.image_shape
  for field in ("crop", "cutout"):
    if settings.data[field] > max(height, width):
      raise ConfigError(
        f"data.{field}={settings.data[field]}: expected an integer <= {max(height, width)}, as the "
        f"images of {data.name} are {height}x{width}"
      )
  if not size:
    return data
  if size > min(height, width):
    raise ConfigError(f"data.resized_crop={size}: the images of {data.name} are {height}x{width}")
  return dataclasses.replace(data, image_shape=(size, size, channels))


def _teacher_phase(
  name: str,
  teacher: Teacher,
  variables: Mapping[str, Any] | None,
  settings: ml_collections.ConfigDict,
  data: Dataset,
) -> Phase:
  """Build the phase of one teacher, by the teachers' recipe."""
  phase = _phase(teacher_spec(name, teacher, settings), settings, "teacher", data)
  if variables is None:
    return phase
  return with_variables(phase, teacher, variables, settings, data)


def _student_phase(
  spec: PhaseSpec,
  settings: ml_collections.ConfigDict,
  data: Dataset,
  teachers: Mapping[str, Teacher],
) -> Phase:
  """Build the phase of one of a method's specs, by the student's recipe."""
  if spec.reuses_classifier:
    label = [spec.label or settings.student.model, *(t.label for t in teachers.values())]
    spec = dataclasses.replace(spec, label="+".join(label))
  phase = with_tables(_phase(spec, settings, "student", data), teachers)
  if settings.get("keep_by", ACCURACY) != AGREEMENT:
    return phase
  return with_reference(phase, settings.method.name, teachers, data.num_classes)


def _counted(plan: Sequence[Phase], data: Dataset) -> list[Phase]:
  """Return the phases with their multiply-adds; tracing raises for what does not fit."""
  return [
    dataclasses.replace(phase, multiply_adds=multiply_adds(phase, data.input_shape))
    if phase.epochs
    else phase
    for phase in plan
  ]


def _phase(
  spec: PhaseSpec, settings: ml_collections.ConfigDict, section: str, data: Dataset
) -> Phase:
  """Build the phase of a spec, by the recipe and examples of a config's "teacher" or "student"."""
  recipe = settings[section]
  of_optimizer, of_schedule = recipe_arguments(section, recipe)
  epochs = spec.epochs or recipe.epochs
  # A student that learns from labels alone learns nothing from images without.
  examples = phase_examples(settings, section, data, labelled=spec.name == BASELINE)
  steps = count_steps(len(examples), settings.batch_size)
  if epochs * steps >= 2**31:
    raise ConfigError(
      f"phase {spec.name!r}: {epochs} epochs of {steps} updates each are more than int32 counts"
    )
  schedule = learning_rate_schedule(
    recipe.schedule,
    learning_rate=spec.learning_rate or recipe.learning_rate,
    epochs=epochs,
    # Participants that take turns count their own updates.
    steps_per_epoch=-(-steps // max(1, len(spec.turns))),
    drops=recipe.drops,
    drop_factor=recipe.drop_factor,
    warmup_epochs=recipe.warmup_epochs,
    arguments=of_schedule,
  )
  optimizer = make_optimizer(
    recipe.optimizer,
    schedule,
    momentum=recipe.momentum,
    nesterov=recipe.nesterov,
    weight_decay=recipe.weight_decay,
    clip_norm=recipe.clip_norm,
    arguments=of_optimizer,
  )
  return Phase(
    name=spec.name,
    role=spec.role,
    scheme=spec.scheme,
    optimizer=take_turns(optimizer, spec.turns) if spec.turns else optimizer,
    epochs=epochs,
    examples=examples,
    batch_size=settings.batch_size,
    seed=settings.seed + spec.seed_offset,
    prepare_training=training_preparation(
      settings, data, spec.augmentations, spec.partners, spec.strong
    ),
    prepare_evaluation=evaluation_preparation(settings, data),
    inherit=spec.inherit,
    augmentations=(*spec.augmentations, *spec.strong),
    partners=spec.partners,
    reported=spec.reported,
    label=spec.label or recipe.model,
    # Where nothing predicts yet, there is no accuracy to choose the best epoch by.
    keep=settings.keep if spec.reported else "last",
    keep_by=settings.get("keep_by", ACCURACY),
    accumulate=settings.accumulate,
    average_decay=recipe.average_decay or None,
    label_smoothing=recipe.get("label_smoothing", 0.0),
    class_weights=_class_weights(settings, section, examples, data),
    patience=_patience(settings, section, spec.reported, data),
    views=settings.data.views,
    cached_targets=settings.cached_targets,
    resident_bytes=settings.resident_megabytes * 2**20,
    notes=spec.notes,
  )


def _class_weights(
  settings: Any, section: str, examples: Examples, data: Dataset
) -> tuple[float, ...]:
  """Return a section's weight of each class; () if it has none.

  "balanced" is N / (C n_c) for N labels of C classes, of which n_c are of class c, as scikit-learn
  defines it; a class without labels has weight 0, and C is the number of classes that have some.

  Args:
    settings: a config that `check_config` accepts.
    section: "teacher" or "student".
    examples: training examples of the phase.
    data: data set of the run.

  Raises:
    ConfigError: if they are not one per class, or if labels are mixed (`data.mixup`).
  """
  chosen = settings[section].get("class_weights", ())
  if not len(chosen):
    return ()
  where = f"{section}.class_weights={chosen!r}"
  if settings.data.mixup:
    raise ConfigError(f"{where}: expected () with data.mixup={settings.data.mixup:g}")
  if chosen != BALANCED:
    if len(chosen) != data.num_classes:
      raise ConfigError(
        f"{where}: expected {data.num_classes} numbers, one for each class of {data.name}, "
        f"got {len(chosen)}"
      )
    return tuple(float(weight) for weight in chosen)
  labels, mask = np.asarray(examples.labels), getattr(examples, "mask", None)
  counted = labels != UNLABELLED
  if mask is not None and mask.ndim <= labels.ndim:
    counted &= (np.asarray(mask) != 0).reshape(mask.shape + (1,) * (labels.ndim - mask.ndim))
  numbers = np.bincount(labels[counted].reshape(-1), minlength=data.num_classes)
  present = np.count_nonzero(numbers)
  weights = np.where(numbers > 0, numbers.sum() / (max(1, present) * np.maximum(numbers, 1)), 0.0)
  return tuple(float(weight) for weight in weights)


def _patience(settings: Any, section: str, reported: str, data: Dataset) -> int:
  """Return the epochs without a better validation score after which a phase ends; 0 never does.

  A phase that leaves no predictor has no score, and makes all of its epochs.

  Raises:
    ConfigError: if there is no validation split.
  """
  patience = settings[section].get("patience", 0)
  if patience and data.validation is None:
    raise ConfigError(
      f"{section}.patience={patience}: expected 0 without a validation split (data.validation="
      f"{settings.data.validation:g})"
    )
  return patience if reported else 0
