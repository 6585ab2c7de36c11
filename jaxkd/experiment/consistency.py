"""Contradictions among the fields of a config, and fields without effect."""

from __future__ import annotations

from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.consistency"):
  import ml_collections

from jaxkd import methods, models
from jaxkd.data.multi_label import MULTI
from jaxkd.errors import ConfigError
from jaxkd.experiment import own_models
from jaxkd.experiment.given import is_given
from jaxkd.experiment.training_fields import check_training, training_remarks
from jaxkd.train.evaluate import ACCURACY, AGREEMENT

_RANDOM = ("crop", "resized_crop", "flip", "cutout")


def check_consistency(settings: ml_collections.ConfigDict) -> None:
  """Raise a ConfigError for an unknown model, and for fields that contradict each other.

  Args:
    settings: a complete config whose fields are each valid.
  """
  with_teacher = _has_teacher(settings)
  if with_teacher:
    _check_teacher(settings)
  used = ["student"] if settings.method.name != "teacher" else []
  used += ["teacher"] if with_teacher and not settings.teacher.logits else []
  for role in used:
    section = settings[role]
    if role == "student":
      _check_start(section)
    # A file may hold a model that is not registered.
    comes_known = section.get("bundle") or section.get("stablehlo")
    if not is_given(section.model) and (role == "student" or not comes_known):
      models.check_name(f"{role}.model", section.model)
    own_models.taps_of(section, role)
    comes_trained = role == "teacher" and _comes_trained(section)
    check_training(role, section, comes_trained=comes_trained)
  if with_teacher:
    _check_images(settings.teacher)
  for name in settings.method.get("models", ()):
    if name != "student":
      models.check_name("method.models", name)
  smoothing = settings.student.get("label_smoothing", 0.0)
  if smoothing and settings.method.get("label_smoothing", 0.0):
    raise ConfigError(
      f"student.label_smoothing={smoothing:g}: expected 0.0 with method.label_smoothing="
      f"{settings.method.label_smoothing:g}"
    )
  _check_keep_by(settings)
  _check_data(settings)
  _check_multi_label(settings)


def _has_teacher(settings: ml_collections.ConfigDict) -> bool:
  return settings.method.name == "teacher" or methods.is_taught(settings.method.name)


def _comes_trained(teacher: ml_collections.ConfigDict) -> bool:
  """Check whether the teacher is not trained in the run, but loaded or given."""
  files = ("bundle", "weights", "logits", "stablehlo")
  return any(teacher[field] for field in files) or is_given(teacher.model)


def _check_images(teacher: ml_collections.ConfigDict) -> None:
  """Raise a ConfigError if images are stated for a teacher that is trained in the run."""
  if teacher.bundle or teacher.weights or teacher.stablehlo:
    return
  if models.imported.is_own(teacher.model):  # which may return a trained Network
    return
  for field, unset in (("mean", ()), ("std", ()), ("image_size", 0)):
    if teacher[field] != unset:
      raise ConfigError(
        f"teacher.{field}={teacher[field]}: expected {unset} without teacher.bundle and "
        "teacher.weights, as a teacher that is trained in this run sees its images"
      )


def remarks(settings: ml_collections.ConfigDict) -> list[str]:
  """Return a line for every field of a valid config that has no effect or not its full effect."""
  with_teacher = _has_teacher(settings)
  found = []
  used = ["student"] if settings.method.name != "teacher" else []
  used += ["teacher"] if with_teacher and not _comes_trained(settings.teacher) else []
  for role in used:
    found += training_remarks(role, settings[role])
  method = settings.method
  if method.get("ramp", "none") != "none" and method.ramp_epochs > settings.student.epochs:
    found.append(
      f"method.ramp_epochs={method.ramp_epochs:g} is longer than the training, "
      f"student.epochs={settings.student.epochs}: the weight at its end is not reached"
    )
  return found


def _check_keep_by(settings: ml_collections.ConfigDict) -> None:
  """Raise a ConfigError for a `keep_by` that has no effect, or that cannot be computed."""
  by = settings.get("keep_by", ACCURACY)
  if by == ACCURACY:
    return
  where = f"keep_by={by!r}"
  waits = any(settings[section].get("patience", 0) for section in ("teacher", "student"))
  if settings.keep != "best" and not waits:
    raise ConfigError(f"{where}: expected 'accuracy' with keep={settings.keep!r} and no patience")
  if settings.data.get("labels", "single") == MULTI:
    raise ConfigError(f"{where}: expected 'accuracy' with data.labels={MULTI!r}")
  if by != AGREEMENT:
    return
  if not methods.is_taught(settings.method.name):
    raise ConfigError(f"{where}: expected a method with a teacher, not {settings.method.name!r}")
  if settings.teacher.logits:
    raise ConfigError(
      f"{where}: teacher.logits={settings.teacher.logits!r} has no logits of validation examples"
    )


def _check_data(settings: ml_collections.ConfigDict) -> None:
  section = settings.data
  if section.crop and section.resized_crop:
    raise ConfigError(
      f"data.crop={section.crop}: expected 0 with data.resized_crop={section.resized_crop}"
    )
  if section.unlabelled and not section.per_class and settings.method.name != "teacher":
    raise ConfigError(
      f"data.unlabelled={section.unlabelled}: data.per_class=0 leaves no image unlabelled"
    )
  if settings.cached_targets:
    check_repeated(settings, "cached_targets=True")


def _check_start(section: Any) -> None:
  """Raise a ConfigError if a config's "student" names both a bundle and a file of weights."""
  if section.get("bundle") and section.get("weights"):
    raise ConfigError(
      f"student.bundle={section.bundle!r} and student.weights={section.weights!r}: expected one "
      "of them"
    )


def _check_teacher(settings: ml_collections.ConfigDict) -> None:
  """Raise a ConfigError for fields of the teacher that contradict each other or the method.

  Args:
    settings: a config of a method with a teacher, whose fields are each valid.
  """
  teacher = settings.teacher
  given = [field for field in ("bundle", "weights", "stablehlo") if teacher[field]]
  if len(given) > 1 and not teacher.logits:
    shown = " and ".join(f"teacher.{field}={teacher[field]!r}" for field in given)
    raise ConfigError(f"{shown}: expected one of them")
  if teacher.logits:
    _check_logits(settings)
  elif teacher.missing != "impossible":
    raise ConfigError(
      f"teacher.missing={teacher.missing!r}: expected 'impossible' without teacher.logits"
    )
  if teacher.weights_part and not teacher.weights:
    raise ConfigError(
      f"teacher.weights_part={teacher.weights_part!r}: expected '' without teacher.weights"
    )
  _check_fine_tuning(teacher)


def check_repeated(settings: ml_collections.ConfigDict, stored: str) -> None:
  """Raise a ConfigError if targets are stored by example, but images are never repeated.

  Args:
    settings: a config; its "data" section is used.
    stored: the field for which targets are stored, in words.
  """
  section = settings.data
  if section.mixup:
    raise ConfigError(
      f"data.mixup={section.mixup}: expected 0 with {stored}, since every epoch mixes others"
    )
  random = augmented_by(settings)
  if random and not section.views:
    raise ConfigError(
      f"data.views=0: expected an integer >= 1 with {stored}, since data.{random}="
      f"{section[random]} makes an image a new one every time"
    )


def augmented_by(settings: ml_collections.ConfigDict) -> str:
  """Return the first field of "data" that changes images at random; "" if none does."""
  return next((name for name in _RANDOM if settings.data[name]), "")


def _check_logits(settings: ml_collections.ConfigDict) -> None:
  """Raise a ConfigError for what a teacher without a network cannot have."""
  teacher, given = settings.teacher, f"teacher.logits={settings.teacher.logits!r}"
  if settings.method.name == "teacher":
    raise ConfigError(f"{given}: expected '' with method 'teacher', which trains a network")
  for field, unset in (
    ("bundle", ""),
    ("weights", ""),
    ("weights_part", ""),
    ("stablehlo", ""),
    ("tap", ""),
    ("count", 1),
    ("new_head", False),
    ("finetune_epochs", 0),
    ("mean", ()),
    ("std", ()),
    ("image_size", 0),
  ):
    value = teacher[field]
    if value != unset:
      raise ConfigError(
        f"teacher.{field}={value!r} and {given}: expected one of them, as a file of logits is the "
        f"whole teacher (teacher.{field}={unset!r})"
      )
  for name, method in methods.methods(settings.method.name).items():
    if not method.takes_logits:
      able = [n for n, m in methods.METHODS.items() if m.takes_logits]
      reads = "gradients or layers" if method.needs == "logits" else method.needs
      raise ConfigError(
        f"method.name={settings.method.name!r}: {name!r} needs {reads} of the teacher, and {given} "
        f"has logits alone; these need no more: {', '.join(able)}"
      )
  if settings.cached_targets:
    raise ConfigError(f"cached_targets=True: expected False with {given}, which is stored already")
  check_repeated(settings, given)


def _check_fine_tuning(teacher: ml_collections.ConfigDict) -> None:
  """Raise a ConfigError for a new classifier or fine-tuning that cannot be."""
  epochs = teacher.finetune_epochs
  for field, unset in (("new_head", False), ("finetune_epochs", 0)):
    if teacher[field] and not (teacher.bundle or teacher.weights):
      raise ConfigError(
        f"teacher.{field}={teacher[field]}: expected {unset} without teacher.bundle and "
        "teacher.weights, as there is no trained teacher to start from"
      )
  if teacher.new_head and not epochs:
    raise ConfigError(
      "teacher.finetune_epochs=0: expected an integer >= 1 with teacher.new_head=True, as the new "
      "classifier has random weights"
    )
  if teacher.finetune_learning_rate and not epochs:
    raise ConfigError(
      f"teacher.finetune_learning_rate={teacher.finetune_learning_rate:g}: expected 0 with "
      "teacher.finetune_epochs=0"
    )
  if 0 < epochs < teacher.warmup_epochs:
    raise ConfigError(
      f"teacher.warmup_epochs={teacher.warmup_epochs:g}: expected a number <= {epochs}, as "
      f"teacher.finetune_epochs={epochs} says, since the learning rate would not be reached"
    )


def _check_multi_label(settings: Any) -> None:
  """Raise a ConfigError for what needs single labels in a config with multi-hot ones.

  Args:
    settings: a config.
  """
  if settings.data.get("labels", "single") != MULTI:
    return
  field = f"data.labels={MULTI!r}"
  for name, method in methods.methods(settings.method.name).items():
    if not method.multi_label:
      able = [n for n, m in methods.METHODS.items() if m.multi_label]
      raise ConfigError(
        f"method.name={name!r} needs single labels, and {field}: these take both: {', '.join(able)}"
      )
  for option in ("mixup", "per_class", "teacher_per_class", "test_per_class", "unlabelled"):
    if value := settings.data.get(option):
      raise ConfigError(
        f"data.{option}={value!r}: expected {type(value)()!r} with {field}, as an example has "
        "several classes or none"
      )
  if folder := settings.data.get("unlabelled_folder"):
    raise ConfigError(f"data.unlabelled_folder={folder!r}: expected '' with {field}")
  for role in ("teacher", "student"):
    if weights := settings[role].get("class_weights"):
      raise ConfigError(f"{role}.class_weights={weights!r}: expected () with {field}")
  if settings.teacher.logits:
    raise ConfigError(f"teacher.logits={settings.teacher.logits!r}: expected '' with {field}")
