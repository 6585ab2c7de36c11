"""The fields of an experiment's config, their defaults, and contradictions between them."""

from __future__ import annotations

from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.config"):
  import ml_collections

from jaxkd import fields as accepted
from jaxkd import methods, models
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.fields import (
  Field,
  Fields,
  channel_numbers,
  choice,
  flag,
  image_sizes,
  integer,
  number,
  numbers,
  text,
)
from jaxkd.train.nonfinite import POLICIES
from jaxkd.train.optimizers import OPTIMIZERS, SCHEDULES, drops_after_the_end


def training_fields(model: str) -> Fields:
  """How one network is trained; defaults are RepDistiller's CIFAR recipe."""
  return {
    "model": text(model),
    "epochs": integer(240, minimum=1),
    "optimizer": choice("sgd", OPTIMIZERS),
    "learning_rate": number(0.05, exclusive=True),
    "momentum": number(0.9, maximum=1.0),
    "nesterov": flag(False),
    "weight_decay": number(5e-4),
    "clip_norm": number(0.0),
    "schedule": choice("step", SCHEDULES),
    "drops": numbers((150, 180, 210)),
    "drop_factor": number(0.1, exclusive=True, maximum=1.0),
    "warmup_epochs": number(0.0),
    "average_decay": number(0.0, maximum=0.999999),
    # Of residual networks, between a block's convolutions.
    "dropout": number(0.0, maximum=0.99),
  }


# What every experiment has; a method adds its own fields under "method".
COMMON: Fields = {
  "seed": integer(0),
  "batch_size": integer(64, minimum=1, maximum=2**20),
  "accumulate": integer(1, minimum=1),
  "devices": integer(0),
  "cpu_devices": integer(0, maximum=256),
  "sync_batch_norm": flag(True),
  "compute_dtype": choice("float32", ("float32", "bfloat16")),
  "evaluate_every": integer(1, minimum=1),
  "checkpoint_seconds": number(60.0),
  # Updates that one program makes before the host has the next word; 0 leaves it to the device.
  "steps_per_dispatch": integer(0),
  # What becomes of a stage when a step is not finite, which is never applied: "stop" with an error,
  # "skip" it, or "rollback" to the last checkpoint, with the learning rates times rollback_factor,
  # at most so many times.
  "nonfinite": choice("stop", POLICIES),
  "rollback_factor": number(0.5, exclusive=True, maximum=0.99),
  "rollbacks": integer(3, minimum=1),
  "keep": choice("last", ("last", "best")),
  "baseline": flag(True),
  # Whether what the losses need of frozen networks is computed once per example and view and read
  # back; and how much of it, with the training images, is held on each device. The rest of it all
  # is on disk.
  "cached_targets": flag(False),
  "resident_megabytes": integer(1024),
  "data": {
    "name": text("digits"),
    "directory": text(""),
    "validation": number(0.1, maximum=0.9),
    # Of the choice of the validation images; -1 is the run's own seed. A number lets runs of
    # several seeds share a teacher that has seen none of them.
    "split_seed": integer(-1, minimum=-1),
    "per_class": integer(0),
    # Training images beyond per_class that a student sees without their labels.
    "unlabelled": integer(0),
    "teacher_per_class": integer(0),
    # Test images of each class, 0 for all: a figure of fewer is for looking whether things work.
    "test_per_class": integer(0),
    "crop": integer(0),
    # The side to which a random rectangle of an image is resized, in evaluation that of the middle
    # that is cut out; 0 leaves images at the size in which they come.
    "resized_crop": integer(0),
    "flip": flag(False),
    "cutout": integer(0),
    "mixup": number(0.0, maximum=1000.0),
    # How many ways an example is augmented, epoch after epoch in turn; 0 for ever new ones.
    "views": integer(0),
  },
  "teacher": {
    **training_fields("resnet32x4"),
    # A teacher that comes trained: a directory that a run left, or a file of PyTorch's weights for
    # teacher.model (.pth, .safetensors).
    "bundle": text(""),
    "weights": text(""),
    # The images that it was trained on, where they are not the run's: mean and std of pixel values
    # in 0..1, and the side of the images. Of several files that differ, one for each. What is left
    # open is what a bundle says, for weights of an ImageNet model torchvision's, else the run's.
    "mean": channel_numbers(),
    "std": channel_numbers(positive=True),
    "image_size": image_sizes(),
    "count": integer(1, minimum=1, maximum=64),
    # Whether one that comes trained is scored again; many runs with one teacher need not.
    "rescore": flag(True),
  },
  "student": training_fields("resnet8x4"),
}


def defaults(fields: Fields) -> ml_collections.ConfigDict:
  """A config with every field at its default.

  >>> defaults({"epochs": integer(3), "data": {"name": text("digits")}}).data.name
  'digits'
  """
  return ml_collections.ConfigDict(
    {
      name: _default(field) if isinstance(field, Field) else defaults(field)
      for name, field in fields.items()
    }
  )


def _default(field: Field) -> Any:
  if not field.any_type:
    return field.default
  return ml_collections.FieldReference(field.default, field_type=object)


def fields(method: str) -> Fields:
  """Every field of a config for `method`, with what each accepts.

  Raises:
    ConfigError: as `jaxkd.methods.methods`.
  """
  return {**COMMON, "method": methods.method_fields(method)}


def base_config(method: str) -> ml_collections.ConfigDict:
  """The config that files in `configs/` start from: RepDistiller's CIFAR recipe for `method`."""
  return defaults(fields(method))


def check_config(settings: ml_collections.ConfigDict) -> None:
  """Raises a ConfigError if a field is unknown, missing or out of range, or contradicts another.

  Mistakes that show with the data or the networks only are errors of `jaxkd.experiment.build`.
  """
  method = settings.get("method", {})
  name = method.get("name", "") if hasattr(method, "get") else method
  accepted.check(settings, fields(name))
  _check_consistency(settings, with_teacher=_has_teacher(name))


def remarks(settings: ml_collections.ConfigDict) -> list[str]:
  """A line for every field of a valid config that has less effect than it seems to."""
  return _remarks(settings, with_teacher=_has_teacher(settings.method.name))


def _has_teacher(name: str) -> bool:
  return name == "teacher" or methods.is_taught(name)


def _check_consistency(settings: ml_collections.ConfigDict, *, with_teacher: bool) -> None:
  """Raises a ConfigError for a model that nobody knows, and for fields that contradict each other.

  Args:
    settings: a config whose fields are all there, each valid by itself.
    with_teacher: whether a teacher is trained, or comes trained.
  """
  used = ["student"] if settings.method.name != "teacher" else []
  used += ["teacher"] if with_teacher else []
  for role in used:
    own = settings[role]
    # A bundle may hold a model of anybody's.
    if not own.get("bundle"):
      _check_model(own.model)
    if own.optimizer == "sgd" and own.nesterov and not own.momentum:
      raise ConfigError(f"{role}.nesterov=True: needs momentum > 0, got {role}.momentum=0")
    comes_trained = own.get("bundle") or own.get("weights")
    # A number of updates that int32 does not count is the schedule's matter.
    if own.epochs < own.warmup_epochs < 2**31 and not comes_trained:
      raise ConfigError(
        f"{role}.warmup_epochs={own.warmup_epochs:g}: expected a number <= {own.epochs}, as "
        f"{role}.epochs says, since the learning rate would not be reached"
      )
  if with_teacher:
    _check_images(settings.teacher)
  for name in settings.method.get("models", ()):
    if name != "student":
      _check_model(name)
  _check_data(settings)


def _check_images(teacher: ml_collections.ConfigDict) -> None:
  """Raises a ConfigError if a teacher that is trained in the run is to see other images."""
  if teacher.bundle or teacher.weights:
    return
  for field, unset in (("mean", ()), ("std", ()), ("image_size", 0)):
    if teacher[field] != unset:
      raise ConfigError(
        f"teacher.{field}={teacher[field]}: expected {unset} without teacher.bundle and "
        "teacher.weights, as a teacher that is trained in this run sees its images"
      )


def _remarks(settings: ml_collections.ConfigDict, *, with_teacher: bool) -> list[str]:
  """A line for every field that a run accepts, and that has less effect on it than it seems to.

  Args:
    settings: a config that `check` accepts.
    with_teacher: whether a teacher is trained, or comes trained.
  """
  found = []
  comes_trained = settings.teacher.bundle or settings.teacher.weights
  used = ["student"] if settings.method.name != "teacher" else []
  used += ["teacher"] if with_teacher and not comes_trained else []
  for role in used:
    own = settings[role]
    late = drops_after_the_end(own.drops, own.epochs) if own.schedule == "step" else ()
    if late:
      which = ", ".join(f"{epoch:g}" for epoch in late)
      found.append(
        f"{role}.drops={tuple(own.drops)}: without effect at {which}, as {role}.epochs={own.epochs}"
      )
  method = settings.method
  if method.get("ramp", "none") != "none" and method.ramp_epochs > settings.student.epochs:
    found.append(
      f"method.ramp_epochs={method.ramp_epochs:g} is longer than the training, "
      f"student.epochs={settings.student.epochs}: the weight at its end is not reached"
    )
  return found


def _check_model(name: str) -> None:
  if name not in models.names():
    raise unknown_name("model", name, models.names())


def _check_data(settings: ml_collections.ConfigDict) -> None:
  own = settings.data
  if own.crop and own.resized_crop:
    raise ConfigError(f"data.crop={own.crop}: expected 0 with data.resized_crop={own.resized_crop}")
  if own.unlabelled and not own.per_class and settings.method.name != "teacher":
    raise ConfigError(
      f"data.unlabelled={own.unlabelled}: data.per_class=0 leaves no image unlabelled"
    )
  if settings.cached_targets:
    _check_views(settings)


def _check_views(settings: ml_collections.ConfigDict) -> None:
  """Raises a ConfigError if targets are to be cached of images that never come again."""
  own = settings.data
  if own.mixup:
    raise ConfigError(
      f"data.mixup={own.mixup}: expected 0 with cached_targets=True, since every epoch mixes others"
    )
  random = [name for name in ("crop", "resized_crop", "flip", "cutout") if own[name]]
  if random and not own.views:
    raise ConfigError(
      f"data.views=0: expected an integer >= 1 with cached_targets=True, since data.{random[0]}="
      f"{own[random[0]]} makes an image a new one every time"
    )
