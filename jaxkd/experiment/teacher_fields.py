"""Contradictions among the fields of a config's "teacher" section."""

from __future__ import annotations

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.teacher_fields"):
  import ml_collections

from jaxkd import methods
from jaxkd.errors import ConfigError

_RANDOM = ("crop", "resized_crop", "flip", "cutout")


def check_teacher(settings: ml_collections.ConfigDict) -> None:
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
