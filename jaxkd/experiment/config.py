"""Fields of an experiment's config, and their defaults."""

from __future__ import annotations

from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.config"):
  import ml_collections

from jaxkd import fields as accepted
from jaxkd import methods
from jaxkd.experiment.consistency import check_consistency
from jaxkd.experiment.consistency import remarks as remarks
from jaxkd.experiment.training_fields import training_fields
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
from jaxkd.models import PRECISIONS
from jaxkd.tables import MISSING
from jaxkd.train.evaluate import KEEP_BY
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
  # The validation score by which keep="best" and patience choose; the agreement is that with the
  # teacher, and phases without one go by accuracy.
  "keep_by": choice("accuracy", KEEP_BY),
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
    # It trains with rounded weights and activations, in every phase, the baseline's included: int8,
    # or int4 weights with activations of 8 bits.
    "quantize": choice("none", ("none", *PRECISIONS)),
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
  check_consistency(settings)
