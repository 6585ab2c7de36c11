"""Fields of an experiment's config, their defaults, and checks for contradictions."""

from __future__ import annotations

from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.config"):
  import ml_collections

from jaxkd import fields as accepted
from jaxkd import methods, models
from jaxkd.errors import ConfigError
from jaxkd.experiment import own_models
from jaxkd.experiment.given import is_given
from jaxkd.experiment.multi_label import check_multi_label
from jaxkd.experiment.student_start import check_start
from jaxkd.experiment.teacher_fields import check_repeated, check_teacher
from jaxkd.experiment.training_fields import check_training, training_fields, training_remarks
from jaxkd.fields import (
  Field,
  Fields,
  channel_numbers,
  choice,
  flag,
  image_sizes,
  integer,
  number,
  text,
)
from jaxkd.tables import MISSING
from jaxkd.train.nonfinite import POLICIES

# Fields of every experiment; a method adds its own fields under "method".
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
  # Training steps per compiled program; 0 chooses by platform.
  "steps_per_dispatch": integer(0),
  # Policy for a step that is not finite, which is never applied: "stop" with an error, "skip" it,
  # or "rollback" to the last checkpoint, with the learning rates times rollback_factor, at most
  # `rollbacks` times.
  "nonfinite": choice("stop", POLICIES),
  "rollback_factor": number(0.5, exclusive=True, maximum=0.99),
  "rollbacks": integer(3, minimum=1),
  "keep": choice("last", ("last", "best")),
  "baseline": flag(True),
  # Whether outputs of frozen networks that the losses need are computed once per example and view,
  # and the memory for them and the training images on each device. What does not fit is on disk.
  "cached_targets": flag(False),
  # Trackers that get the metrics besides the files: names of jaxkd.report.TRACKERS, with commas.
  "reporters": text(""),
  "resident_megabytes": integer(1024),
  "data": {
    # One of jaxkd.data.DATASETS, or one's own: folder:PATH, npz:FILE, tfds:NAME, hf:FOLDER.
    "name": text("digits"),
    "directory": text(""),
    # Side of squares to which the images are resized when they are read; 0 keeps their size.
    "image_size": integer(0, maximum=4096),
    # Labels of an example: one class, or "multi", a number in 0..1 for every class.
    "labels": choice("single", ("single", "multi")),
    # Fraction of the examples held out for tests, for data without a test split; 0 is 0.2. The
    # choice does not depend on the seeds.
    "test": number(0.0, maximum=0.9),
    # Folder of further training images without labels.
    "unlabelled_folder": text(""),
    "validation": number(0.1, maximum=0.9),
    # Seed of the choice of validation images; -1 is the run's seed. With another number, runs of
    # several seeds have the same validation images and can share a teacher.
    "split_seed": integer(-1, minimum=-1),
    "per_class": integer(0),
    # Number of training images beyond per_class that the student sees without labels.
    "unlabelled": integer(0),
    "teacher_per_class": integer(0),
    # Test images per class, 0 for all; fewer are for trial runs, not for results.
    "test_per_class": integer(0),
    "crop": integer(0),
    # Side to which a random rectangle of an image is resized, and of the centre crop in evaluation;
    # 0 keeps the size of the images.
    "resized_crop": integer(0),
    "flip": flag(False),
    "cutout": integer(0),
    "mixup": number(0.0, maximum=1000.0),
    # Number of augmented views of an example, one per epoch in turn; 0 draws a new one every epoch.
    "views": integer(0),
  },
  "teacher": {
    **training_fields("resnet32x4"),
    # A trained teacher: the directory of a bundle, or a file of PyTorch weights for teacher.model
    # (.pth, .safetensors), and which part of it if it has several ("model_ema").
    "bundle": text(""),
    "weights": text(""),
    "weights_part": text(""),
    # Logits of the training examples in place of a network, a .npy or .npz file (docs/teachers.md),
    # and the probability of classes that a row of top-k values does not have.
    "logits": text(""),
    "missing": choice("impossible", MISSING),
    # Whether a trained teacher gets a new classifier for the data's classes, and the epochs in
    # which it is then fine-tuned, all of it, by this recipe; 0 takes the teacher's learning rate.
    "new_head": flag(False),
    "finetune_epochs": integer(0),
    "finetune_learning_rate": number(0.0),
    # Functions of images in files, written by jaxkd.export.stablehlo or jax.export.
    "stablehlo": text(""),
    # Packages whose code a bundle may name, such as "mypkg"; that of teacher.model is one of them.
    "allow_import": text(""),
    # The images that it was trained on, if they are not the run's: mean and std of pixel values in
    # 0..1, and the side of the images; one for each file if several files differ. Unset values are
    # those of the bundle, torchvision's for weights of an ImageNet model, else the run's.
    "mean": channel_numbers(),
    "std": channel_numbers(positive=True),
    "image_size": image_sizes(),
    "count": integer(1, minimum=1, maximum=64),
    # Whether a trained teacher is scored again; not needed in many runs with one teacher.
    "rescore": flag(True),
  },
  "student": {
    **training_fields("resnet8x4"),
    # Weights from which it starts, in every phase that would draw it at random, the baseline's
    # included: the directory of a bundle, or a file of PyTorch weights for student.model.
    "bundle": text(""),
    "weights": text(""),
  },
}


def defaults(fields: Fields) -> ml_collections.ConfigDict:
  """Return a config with every field at its default.

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
  # Flags such as --config.student.optimizer_arguments.b1 set fields of a ConfigDict.
  empty = isinstance(field.default, dict)
  default = ml_collections.ConfigDict(field.default) if empty else field.default
  return ml_collections.FieldReference(default, field_type=object)


def fields(method: str) -> Fields:
  """Return every field of a config for `method`.

  Raises:
    ConfigError: as `jaxkd.methods.methods`.
  """
  return {**COMMON, "method": methods.method_fields(method)}


def base_config(method: str) -> ml_collections.ConfigDict:
  """Return the config that files in `configs/` modify: RepDistiller's CIFAR recipe for `method`."""
  return defaults(fields(method))


def check_config(settings: ml_collections.ConfigDict) -> None:
  """Raise a ConfigError if a field is unknown, missing or out of range, or contradicts another.

  `jaxkd.experiment.build` raises errors that depend on the data or the networks.
  """
  method = settings.get("method", {})
  name = method.get("name", "") if hasattr(method, "get") else method
  accepted.check(settings, fields(name))
  _check_consistency(settings, with_teacher=_has_teacher(name))


def remarks(settings: ml_collections.ConfigDict) -> list[str]:
  """Return a line for every field of a valid config that has no effect or not its full effect."""
  return _remarks(settings, with_teacher=_has_teacher(settings.method.name))


def _has_teacher(name: str) -> bool:
  return name == "teacher" or methods.is_taught(name)


def _check_consistency(settings: ml_collections.ConfigDict, *, with_teacher: bool) -> None:
  """Raise a ConfigError for an unknown model, and for fields that contradict each other.

  Args:
    settings: a complete config whose fields are each valid.
    with_teacher: whether the run has a teacher.
  """
  if with_teacher:
    check_teacher(settings)
  used = ["student"] if settings.method.name != "teacher" else []
  used += ["teacher"] if with_teacher and not settings.teacher.logits else []
  for role in used:
    section = settings[role]
    # A bundle may hold a model that is not registered.
    if role == "student":
      check_start(section)
    comes_known = section.get("bundle") or section.get("stablehlo")
    if not is_given(section.model) and (role == "student" or not comes_known):
      models.check_name(f"{role}.model", section.model)
    own_models.taps_of(section, role)
    check_training(role, section, comes_trained=_comes_trained(role, section))
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
  _check_data(settings)
  check_multi_label(settings)


def _comes_trained(role: str, section: ml_collections.ConfigDict) -> bool:
  """Check whether a section's network is not trained in the run, but loaded."""
  comes = section.get("bundle") or section.get("weights") or is_given(section.model)
  return role == "teacher" and bool(comes)


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


def _remarks(settings: ml_collections.ConfigDict, *, with_teacher: bool) -> list[str]:
  """Return the lines of `remarks`.

  Args:
    settings: a config that `check_config` accepts.
    with_teacher: whether the run has a teacher.
  """
  found = []
  given = ("bundle", "weights", "logits", "stablehlo")
  comes_trained = any(settings.teacher[field] for field in given)
  comes_trained = comes_trained or is_given(settings.teacher.model)
  used = ["student"] if settings.method.name != "teacher" else []
  used += ["teacher"] if with_teacher and not comes_trained else []
  for role in used:
    found += training_remarks(role, settings[role])
  method = settings.method
  if method.get("ramp", "none") != "none" and method.ramp_epochs > settings.student.epochs:
    found.append(
      f"method.ramp_epochs={method.ramp_epochs:g} is longer than the training, "
      f"student.epochs={settings.student.epochs}: the weight at its end is not reached"
    )
  return found


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
