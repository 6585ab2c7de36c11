"""From a config to the list of stages of an experiment."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from jaxkd import bundles, models, schemes
from jaxkd.data import Dataset, Examples, augmentation, normalize, per_class
from jaxkd.errors import ConfigError
from jaxkd.participants import select
from jaxkd.recipes import METHODS, Pair
from jaxkd.train import Stage, check_stages, learning_rate_schedule, make_optimizer
from jaxkd.train import steps_per_epoch as count_steps
from jaxkd.train.devices import AXIS_NAME
from jaxkd.types import Array, Batch, Context, Output, Scheme


def stages(settings: ml_collections.ConfigDict, data: Dataset) -> list[Stage]:
  """The stages of an experiment: the teacher, the student alone, the distilled student.

  Nothing is compiled here: mistakes in models, stages and shapes surface from their shapes alone.

  Args:
    settings: a config that `check_config` accepts.
    data: what `settings.data` names.

  Raises:
    ConfigError: naming the field and what would be accepted.
  """
  method = METHODS[settings.method.name]
  options = {
    "axis_name": AXIS_NAME if settings.sync_batch_norm else None,
    "dtype": jnp.dtype(settings.compute_dtype),
  }
  distils = method.scheme is not None
  plan: list[Stage] = []
  if settings.keep == "best" and data.validation is None:
    raise ConfigError("keep='best' needs a validation split, but data.validation=0.0")

  if distils or settings.method.name == "teacher":
    teacher, teacher_variables, teacher_output, label = _teacher(settings, data, options)
    scheme = schemes.supervised(teacher, participant="teacher")
    stage = dataclasses.replace(_stage("teacher", scheme, settings, "teacher", data), label=label)
    if teacher_variables is not None:
      # A teacher that comes trained is a stage without epochs: it is scored like any other.
      stage = dataclasses.replace(stage, epochs=0, given={"teacher": teacher_variables})
    plan.append(stage)
  if distils or settings.method.name == "alone":
    student = models.create(settings.student.model, num_classes=data.num_classes, **options)
    student_output = _shapes("student.model", settings.student.model, student, data)
    if settings.baseline or not distils:
      plan.append(_stage("alone", schemes.supervised(student), settings, "student", data))
  if method.scheme is not None:
    pair = Pair(
      student=student,
      teacher=teacher,
      student_output=student_output,
      teacher_output=teacher_output,
      image_shape=data.image_shape,
      options=options,
      hyperparameters=settings.method,
    )
    try:
      scheme = method.scheme(pair)
      _rehearse(scheme, data)
    except ConfigError:
      raise
    except ValueError as error:
      raise ConfigError(f"method {settings.method.name!r}: {error}") from error
    rate = settings.method.learning_rate or None
    distilled = _stage("distilled", scheme, settings, "student", data, learning_rate=rate)
    if method.reuses_classifier:
      distilled = dataclasses.replace(distilled, label=f"{distilled.label}+{label}")
    plan.append(dataclasses.replace(distilled, inherit={"teacher": "teacher/teacher"}))
  check_stages(plan)
  return plan


def _teacher(
  settings: ml_collections.ConfigDict, data: Dataset, options: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any] | None, Output, str]:
  """The teacher, its variables if a bundle gives them, the shapes it returns, and its name."""
  name = settings.teacher.model
  if not settings.teacher.bundle:
    module = models.create(name, num_classes=data.num_classes, **options)
    return module, None, _shapes("teacher.model", name, module, data), name
  path = pathlib.Path(settings.teacher.bundle)
  network, description = bundles.load_bundle(path)
  where = f"teacher.bundle={str(path)!r}"
  stored = description.get("model")
  if name not in ("", stored):
    raise ConfigError(
      f"{where} holds a {stored}, but teacher.model={name!r}: set it to that, "
      "or to '' to take what the bundle holds"
    )
  output = _shapes("teacher.bundle", str(path), network.module, data, network.variables)
  classes = 0 if output.logits is None else output.logits.shape[-1]
  if classes != data.num_classes:
    raise ConfigError(
      f"{where} predicts {classes} classes, the student {data.num_classes} "
      f"(data set {settings.data.name!r})"
    )
  return network.module, network.variables, output, stored or type(network.module).__name__


def _shapes(
  field: str, value: str, module: nn.Module, data: Dataset, variables: Any = None
) -> Output:
  """What a model returns for this data's images, as shapes; nothing is computed."""
  images = jax.ShapeDtypeStruct((2, *data.image_shape), jnp.float32)
  try:
    if variables is None:
      variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.eval_shape(functools.partial(module.apply, train=False), variables, images)
  except (ValueError, TypeError) as error:
    reason = " ".join(str(error).split())
    raise ConfigError(f"{field}={value!r} cannot take {data.name}'s images: {reason}") from error


def _rehearse(scheme: Scheme, data: Dataset) -> None:
  """Traces a scheme's objective: what does not fit surfaces before its teacher is trained."""
  one_device = (1, 2)  # with two examples
  batch = Batch(
    images=jax.ShapeDtypeStruct((*one_device, *data.image_shape), jnp.float32),
    labels=jax.ShapeDtypeStruct(one_device, jnp.int32),
    weights=jax.ShapeDtypeStruct(one_device, jnp.float32),
    indices=jax.ShapeDtypeStruct(one_device, jnp.int32),
  )

  def objective(rng: Array, batch: Batch) -> Any:
    everyone = scheme.init(rng, batch)
    learning = select(everyone, scheme.learners)
    targets = scheme.targets(everyone, batch)
    return scheme.loss(learning, everyone, batch, targets, Context(rng, jnp.int32(0), AXIS_NAME))

  mapped = jax.vmap(objective, in_axes=(None, 0), axis_name=AXIS_NAME)
  jax.eval_shape(mapped, jax.random.key(0), batch)


def _stage(
  name: str,
  scheme: Scheme,
  settings: ml_collections.ConfigDict,
  role: str,
  data: Dataset,
  *,
  learning_rate: float | None = None,
) -> Stage:
  """One stage: `role` says whose recipe, but for another learning rate, and whose examples."""
  recipe = settings[role]
  examples = _examples(settings, role, data)
  steps = count_steps(len(examples), settings.batch_size)
  schedule = learning_rate_schedule(
    recipe.schedule,
    learning_rate=learning_rate or recipe.learning_rate,
    epochs=recipe.epochs,
    steps_per_epoch=steps,
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
  augment = augmentation(
    crop=settings.data.crop,
    flip=settings.data.flip,
    cutout=settings.data.cutout,
    mixup=settings.data.mixup,
    num_classes=data.num_classes,
    # The published recipes pad with black before they normalise.
    fill=[-mean / std for mean, std in zip(data.mean, data.std, strict=True)],
    axis_name=AXIS_NAME,
  )

  def normalized(batch: Batch) -> Batch:
    return dataclasses.replace(batch, images=normalize(batch.images, data.mean, data.std))

  return Stage(
    name=name,
    scheme=scheme,
    optimizer=optimizer,
    epochs=recipe.epochs,
    examples=examples,
    batch_size=settings.batch_size,
    seed=settings.seed,
    prepare_training=lambda keys, batch: augment(keys, normalized(batch)),
    prepare_evaluation=normalized,
    reported=role,
    label=recipe.model,
    keep=settings.keep,
    accumulate=settings.accumulate,
    average_decay=recipe.average_decay or None,
  )


def _examples(settings: ml_collections.ConfigDict, role: str, data: Dataset) -> Examples:
  """What the teacher, or a student, is trained on."""
  field = "teacher_per_class" if role == "teacher" else "per_class"
  limit = settings.data[field]
  if not limit:
    return data.train
  try:
    return per_class(data.train, limit, seed=settings.seed)
  except ConfigError as error:
    reason = str(error).partition(": ")[2]
    raise ConfigError(f"data.{field}={limit}: {reason}") from error
