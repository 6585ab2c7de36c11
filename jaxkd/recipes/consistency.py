"""What fields of a config say of each other: contradictions that show before data is read."""

from __future__ import annotations

import ml_collections

from jaxkd import models
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.train.optimizers import drops_after_the_end


def check(settings: ml_collections.ConfigDict, *, with_teacher: bool) -> None:
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


def remarks(settings: ml_collections.ConfigDict, *, with_teacher: bool) -> list[str]:
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
