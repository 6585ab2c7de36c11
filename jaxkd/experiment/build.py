"""From a config to the phases of an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.build"):
  import ml_collections


from jaxkd import methods
from jaxkd.data import (
  Dataset,
  load,
  per_class,
  unseen_classes,
  validate_dataset,
)
from jaxkd.errors import ConfigError
from jaxkd.experiment import networks, own_models, own_teachers
from jaxkd.experiment.preparation import (
  evaluation_preparation,
  phase_examples,
  training_preparation,
)
from jaxkd.jaxprs import multiply_adds_of
from jaxkd.methods.base import BASELINE, PhaseSpec, Setup, Teacher
from jaxkd.networks import select
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.train import (
  Expected,
  Phase,
  check_phases,
  learning_rate_schedule,
  make_optimizer,
  take_turns,
)
from jaxkd.train import steps_per_epoch as count_steps
from jaxkd.types import Array, Batch, Context, Scheme


def dataset(
  settings: ml_collections.ConfigDict, load_data: Callable[..., Dataset] = load
) -> Dataset:
  """Load the data set of a config, in the parts that it asks for.

  Args:
    settings: a config, of which "data" and "seed" count.
    load_data: function to load it, such as one with a cache.

  Raises:
    ConfigError: as `jaxkd.data.load` and `validate_dataset`; or if a class has fewer test images
      than asked for.
  """
  own = settings.data
  split_seed = own.get("split_seed", -1)  # missing in configs of earlier runs
  data = validate_dataset(
    load_data(
      own.name,
      directory=own.directory or None,
      validation=own.validation,
      seed=settings.seed if split_seed < 0 else split_seed,
    )
  )
  few = own.get("test_per_class", 0)
  if not few:
    return data
  try:
    return dataclasses.replace(data, test=per_class(data.test, few, seed=0))  # for every seed
  except ConfigError as error:
    reason = str(error).partition(": ")[2]
    raise ConfigError(f"data.test_per_class={few}: {reason} in the test split") from error


def phases(
  settings: ml_collections.ConfigDict, data: Dataset, *, traced: bool = True
) -> list[Phase]:
  """Build the phases of an experiment: the teachers, the baseline, the distilled student.

  Nothing is compiled: errors in models, stages and shapes follow from shapes alone.

  Args:
    settings: a config that `check_config` accepts.
    data: what `settings.data` names.
    traced: trace every objective, so that what does not fit raises here and not in its first step.

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
    for number, (teacher, variables) in enumerate(own_teachers.teachers(settings, data, options)):
      called = "teacher" if number == 0 else f"teacher_{number}"
      teachers[called] = teacher
      plan.append(_teacher_phase(called, teacher, variables, settings, data))
    methods.check_classes(settings, teachers, data.num_classes)
  if name == "teacher":
    plan = _with_note(plan, unseen_classes(data))
    return _counted(plan, data) if traced else plan

  model = settings.student.model
  student, student_output = networks.create(
    "student.model", model, data, options, dropout=settings.student.dropout
  )
  student, student_output = own_models.tapped(settings.student, student, student_output, data)
  exits = len(student_output) if isinstance(student_output, tuple) else 0
  if distils and exits and not all(method.takes_exits for method in chosen):
    able = [n for n, method in methods.METHODS.items() if method.takes_exits]
    raise ConfigError(
      f"student.model={settings.student.model!r} has {exits} exits of its own, and method "
      f"{name!r} trains a network with one; these train several: {', '.join(able)}"
    )
  setup = Setup(
    student=student,
    student_output=student_output,
    teachers=teachers,
    image_shape=data.image_shape,
    options=options,
    epochs=settings.student.epochs,
    steps_per_epoch=count_steps(
      len(phase_examples(settings, "student", data)), settings.batch_size
    ),
    hyperparameters=settings.method,
    create=lambda model: networks.create("method.models", model, data, options)[0],
  )
  try:
    specs = methods.phases(setup) if distils else []
    if (settings.baseline or not distils) and not any(spec.name == BASELINE for spec in specs):
      specs = [methods.baseline(setup), *specs]
    plan += [_student_phase(spec, settings, data, teachers) for spec in specs]
    if traced:
      plan = _counted(plan, data)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"method {name!r}: {error}") from error
  check_phases(plan)
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
    ConfigError: if `data.crop`, `resized_crop` or `cutout` is more than the images have.
  """
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


# Hint for a trained teacher whose accuracy is at chance.
_HINT = (
  "check that its images and classes are those that it was trained on (teacher.mean, teacher.std, "
  "teacher.image_size, data.name)"
)


def _teacher_phase(
  name: str,
  teacher: Teacher,
  variables: Mapping[str, Any] | None,
  settings: ml_collections.ConfigDict,
  data: Dataset,
) -> Phase:
  """Build the phase of one teacher, by the teachers' recipe; without epochs if it comes trained."""
  spec = PhaseSpec(
    name,
    methods.supervised(teacher.model, participant=name),
    seed_offset=int(name.partition("_")[2] or 0),
    reported=name,
    label=teacher.label,
    role="teacher",
  )
  phase = _phase(spec, settings, "teacher", data)
  if variables is None:
    return phase
  # It is scored like any other, where the config says so and its classes are the data's.
  scored = teacher.num_classes == data.num_classes
  return dataclasses.replace(
    phase,
    epochs=0,
    given={name: variables},
    reported=name if scored and settings.teacher.rescore else "",
    expected=Expected(name, data.num_classes, teacher.accuracy, _HINT) if scored else None,
    notes=teacher.notes,
  )


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
  return _phase(spec, settings, "student", data)


def batch_shapes(image_shape: tuple[int, int, int], leading: tuple[int, ...]) -> Batch:
  """Return the shapes and dtypes of a batch as a scheme sees it, with these leading axes."""
  number = jax.ShapeDtypeStruct(leading, jnp.int32)
  return Batch(
    inputs=jax.ShapeDtypeStruct((*leading, *image_shape), jnp.float32),
    labels=number,
    weights=jax.ShapeDtypeStruct(leading, jnp.float32),
    indices=number,
    epochs=number,
  )


def _counted(plan: Sequence[Phase], data: Dataset) -> list[Phase]:
  """Return the phases with their multiply-adds; tracing raises for what does not fit."""
  return [
    dataclasses.replace(
      phase, multiply_adds=multiply_adds(phase.scheme, data.image_shape, parts=phase.accumulate)
    )
    if phase.epochs
    else phase
    for phase in plan
  ]


def multiply_adds(
  scheme: Scheme, image_shape: tuple[int, int, int], *, parts: int = 1
) -> int | None:
  """Count the multiply-adds of one example's targets and loss, forwards.

  Nothing is computed, but the objective is traced: what does not fit raises here, and so does an
  objective that cannot be computed on `parts` of a batch. None if a loop has no known length.
  """
  examples = 2
  batch = batch_shapes(image_shape, (1, examples))  # on one device

  def objective(rng: Array, batch: Batch) -> Any:
    everyone = scheme.init(rng, batch)
    learning = select(everyone, scheme.learners)
    targets = scheme.targets(everyone, batch)
    context = Context(rng, jnp.int32(0), AXIS_NAME, parts)
    return scheme.loss(learning, everyone, batch, targets, context)

  mapped = jax.vmap(objective, in_axes=(None, 0), axis_name=AXIS_NAME)
  traced = jax.make_jaxpr(mapped)(jax.random.key(0), batch)
  try:
    return multiply_adds_of(traced.jaxpr) // examples
  except ConfigError:  # a loop of unknown length
    return None


def _phase(
  spec: PhaseSpec, settings: ml_collections.ConfigDict, section: str, data: Dataset
) -> Phase:
  """Build the phase of a spec, by the recipe and examples of a config's "teacher" or "student"."""
  recipe = settings[section]
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
  )
  optimizer = make_optimizer(
    recipe.optimizer,
    schedule,
    momentum=recipe.momentum,
    nesterov=recipe.nesterov,
    weight_decay=recipe.weight_decay,
    clip_norm=recipe.clip_norm,
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
    prepare_training=training_preparation(settings, data),
    prepare_evaluation=evaluation_preparation(settings, data),
    inherit=spec.inherit,
    reported=spec.reported,
    label=spec.label or recipe.model,
    # Where nothing predicts yet, there is no accuracy to choose the best epoch by.
    keep=settings.keep if spec.reported else "last",
    accumulate=settings.accumulate,
    average_decay=recipe.average_decay or None,
    views=settings.data.views,
    cached_targets=settings.cached_targets,
    resident_bytes=settings.resident_megabytes * 2**20,
    notes=spec.notes,
  )
