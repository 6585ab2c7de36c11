"""From a config to a list of stages: the one place where method names meet code."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from jaxkd import bundles, config, losses, models, schemes
from jaxkd.config import Fields, number, text
from jaxkd.connectors import projector_for, regressor_for
from jaxkd.data import Dataset, augmentation, normalize, per_class
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.participants import select
from jaxkd.schemes import Distillation
from jaxkd.train import Stage, check_stages, learning_rate_schedule, make_optimizer
from jaxkd.train import steps_per_epoch as count_steps
from jaxkd.train.devices import AXIS_NAME
from jaxkd.types import Array, Batch, Context, Output, Scheme


@dataclasses.dataclass(frozen=True)
class Pair:
  """What a method builds its scheme from.

  Attributes:
    student: the model that learns.
    teacher: the model it learns from.
    student_output: the shapes it returns.
    teacher_output: the shapes it returns.
    image_shape: (H, W, C).
    options: fields every trained module takes: the axis of cross-device statistics, the dtype.
    hyperparameters: the config's "method" section.
  """

  student: nn.Module
  teacher: nn.Module
  student_output: Output
  teacher_output: Output
  image_shape: tuple[int, int, int]
  options: Mapping[str, Any]
  hyperparameters: ml_collections.ConfigDict

  def shapes(self, stage: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The student's and the teacher's shape at a stage, batch included."""
    return (
      feature_shape(self.student_output, stage, "student"),
      feature_shape(self.teacher_output, stage, "teacher"),
    )


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to train a student.

  Attributes:
    summary: one line for listings.
    fields: its hyperparameters, the config's "method" section.
    scheme: from a pair of networks to the scheme that trains the student; None for methods
      without a distilled student.
  """

  summary: str
  fields: Fields
  scheme: Callable[[Pair], Scheme] | None


def _offline(pair: Pair, distillation: Distillation) -> Scheme:
  return schemes.offline(
    pair.student,
    {"teacher": pair.teacher},
    [distillation],
    label_weight=pair.hyperparameters.label_weight,
  )


def _kd(pair: Pair) -> Scheme:
  own = pair.hyperparameters
  loss = functools.partial(losses.knowledge_distillation, temperature=own.temperature)
  return _offline(pair, Distillation("kd", loss, own.weight))


def _fitnets(pair: Pair) -> Scheme:
  own = pair.hyperparameters
  student, teacher = pair.shapes(own.stage)
  regressor = regressor_for(student, teacher, stage=own.stage, **pair.options)
  loss = functools.partial(losses.fitnets, stages=(own.stage,))
  return _offline(
    pair, Distillation("fitnets", loss, own.weight, connectors={own.stage: regressor})
  )


def _attention_transfer(pair: Pair) -> Scheme:
  own = pair.hyperparameters
  for stage in own.stages:
    pair.shapes(stage)
  loss = functools.partial(
    losses.attention_transfer, stages=tuple(own.stages), power=own.power, norm=own.norm
  )
  return _offline(pair, Distillation("at", loss, own.weight))


def _simkd(pair: Pair) -> Scheme:
  own = pair.hyperparameters
  student, teacher = pair.shapes(own.stage)
  projector = projector_for(
    student, teacher, stage=own.stage, reduction=own.reduction, **pair.options
  )
  return schemes.simkd(
    pair.student,
    pair.teacher,
    projector,
    image_shape=pair.image_shape,
    stages=(own.stage, own.stage),
    weight=own.weight,
  )


METHODS: Mapping[str, Method] = {
  "teacher": Method("the teacher alone, from labels", {}, None),
  "alone": Method("the student alone, from labels", {}, None),
  "kd": Method(
    "knowledge distillation: softened logits (Hinton et al., 2015)",
    {
      "temperature": number(4.0, exclusive=True),
      "weight": number(0.9),
      "label_weight": number(0.1),
    },
    _kd,
  ),
  "fitnets": Method(
    "FitNets: one hint through a regressor (Romero et al., 2015)",
    {"stage": text("stage2"), "weight": number(100.0), "label_weight": number(1.0)},
    _fitnets,
  ),
  "at": Method(
    "attention transfer from activations (Zagoruyko and Komodakis, 2017)",
    {
      "stages": config.names(("stage1", "stage2", "stage3")),
      "power": number(2.0, exclusive=True),
      "norm": config.choice("code", ("code", "paper")),
      "weight": number(1000.0),
      "label_weight": number(1.0),
    },
    _attention_transfer,
  ),
  "simkd": Method(
    "SimKD: the reused teacher classifier (Chen et al., 2022)",
    {
      "stage": text("stage3"),
      "reduction": config.integer(2, minimum=1),
      "weight": number(1.0),
    },
    _simkd,
  ),
}


def fields(method: str) -> Fields:
  """Every field of a config for `method`, with what each accepts.

  Raises:
    ConfigError: if there is no such method, naming the nearest.
  """
  if not isinstance(method, str) or method not in METHODS:
    raise unknown_name("method", method, METHODS)
  return {**config.COMMON, "method": {"name": text(method), **METHODS[method].fields}}


def base_config(method: str) -> ml_collections.ConfigDict:
  """The config that files in `configs/` start from: RepDistiller's CIFAR recipe for `method`."""
  return config.defaults(fields(method))


def check_config(settings: ml_collections.ConfigDict) -> None:
  """Raises a ConfigError if a field is unknown, missing or out of range."""
  method = settings.get("method", {})
  name = method.get("name", "") if hasattr(method, "get") else method
  config.check(settings, fields(name))


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
    distilled = _stage("distilled", scheme, settings, "student", data)
    plan.append(dataclasses.replace(distilled, inherit={"teacher": "teacher/teacher"}))
  check_stages(plan)
  return plan


def feature_shape(output: Output, stage: str, owner: str) -> tuple[int, ...]:
  """The shape of a stage's features.

  Raises:
    ConfigError: if the model has no such stage, naming those it has.
  """
  if stage not in output.features:
    raise unknown_name(f"stage of the {owner}", stage, output.features)
  return output.features[stage].shape


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
  name: str, scheme: Scheme, settings: ml_collections.ConfigDict, role: str, data: Dataset
) -> Stage:
  """One stage: `role` says whose recipe and whose examples."""
  recipe = settings[role]
  limit = settings.data.teacher_per_class if role == "teacher" else settings.data.per_class
  examples = per_class(data.train, limit, seed=settings.seed) if limit else data.train
  steps = count_steps(len(examples), settings.batch_size)
  schedule = learning_rate_schedule(
    recipe.schedule,
    learning_rate=recipe.learning_rate,
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
