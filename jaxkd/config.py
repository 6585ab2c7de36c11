"""The fields of an experiment's config: their defaults, and what each accepts.

A config is an `ml_collections.ConfigDict` made from a tree of `Field`s; `check` holds any config
against that tree before anything is loaded, compiled or written.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd.config"):
  import ml_collections

import numpy as np

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.train.nonfinite import POLICIES
from jaxkd.train.optimizers import OPTIMIZERS, SCHEDULES


@dataclasses.dataclass(frozen=True)
class Field:
  """One value of a config.

  Attributes:
    default: its value where nobody says otherwise.
    accepts: whether a value is valid.
    meaning: what would be accepted, for the error message.
    any_type: whether values may be of another type than the default.
  """

  default: Any
  accepts: Callable[[Any], bool]
  meaning: str
  any_type: bool = False


Fields = Mapping[str, Any]  # name -> Field, or a nested Fields


# What the int32 of a device can count, or name a draw by.
_LARGEST = 2**31 - 1
# What its float32 can tell from zero and from infinity.
_SMALLEST, _GREATEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def integer(default: int, *, minimum: int = 0, maximum: int = _LARGEST) -> Field:
  """A whole number in a range."""
  upper = "< 2**31" if maximum == _LARGEST else f"<= {maximum}"
  return Field(
    default,
    lambda v: isinstance(v, int) and not isinstance(v, bool) and minimum <= v <= maximum,
    f"an integer >= {minimum} and {upper}",
  )


def number(
  default: float, *, minimum: float = 0.0, maximum: float = math.inf, exclusive: bool = False
) -> Field:
  """A number of float32 in a range; `exclusive` leaves the minimum itself out."""

  def accepts(v: Any) -> bool:
    if not _is_finite(v):
      return False
    return (v > minimum if exclusive else v >= minimum) and v <= maximum

  upper = "" if maximum == math.inf else f" and <= {maximum:g}"
  return Field(default, accepts, f"a number {'>' if exclusive else '>='} {minimum:g}{upper}")


def flag(default: bool) -> Field:
  """True or False."""
  return Field(default, lambda v: isinstance(v, bool), "True or False")


def choice(default: str, names: Sequence[str]) -> Field:
  """One of a few names."""
  return Field(default, lambda v: v in names, f"one of {', '.join(names)}")


def text(default: str) -> Field:
  """Any text in one line."""
  return Field(default, _is_line, "a text of printable characters")


def numbers(default: tuple[float, ...]) -> Field:
  """A tuple of positive numbers in rising order."""

  def accepts(v: Any) -> bool:
    if not isinstance(v, tuple | list):
      return False
    positive = all(_is_finite(x) and x > 0 for x in v)
    return positive and list(v) == sorted(set(v))

  return Field(default, accepts, "a tuple of rising positive numbers")


def weights(default: tuple[float, ...] = ()) -> Field:
  """A tuple of positive numbers in any order; () leaves the weighing to the method."""

  def accepts(v: Any) -> bool:
    return isinstance(v, tuple | list) and all(_is_finite(x) and x > 0 for x in v)

  return Field(default, accepts, "a tuple of positive numbers")


def channel_numbers(*, positive: bool = False) -> Field:
  """A tuple of numbers, one per channel of an image; or one such tuple for each of several files.

  () leaves it open.
  """

  def one(v: Any) -> bool:
    return isinstance(v, tuple | list) and all(_is_finite(x) and (x > 0 or not positive) for x in v)

  def accepts(v: Any) -> bool:
    return one(v) or (isinstance(v, tuple | list) and all(map(one, v)))

  kind = "positive numbers" if positive else "numbers"
  return Field((), accepts, f"a tuple of {kind}, one per channel, or one such tuple for each file")


def image_sizes(*, maximum: int = 4096) -> Field:
  """The side of square images, 0 to leave it open; or a tuple of one for each of several files."""

  def one(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= maximum

  def accepts(v: Any) -> bool:
    return one(v) or (isinstance(v, tuple) and len(v) > 0 and all(map(one, v)))

  meaning = f"an integer >= 0 and <= {maximum}, or a tuple of one for each file"
  return Field(0, accepts, meaning, any_type=True)


def names(default: tuple[str, ...]) -> Field:
  """A tuple of at least one name."""
  return Field(
    default,
    lambda v: isinstance(v, tuple | list) and len(v) > 0 and all(map(_is_line, v)),
    "a tuple of names",
  )


def _is_line(v: Any) -> bool:
  # Without what no file system takes (NUL) and what would break an error message in two.
  return isinstance(v, str) and v.isprintable()


def _is_finite(v: Any) -> bool:
  """Whether `v` is a number, and one that float32 holds, which devices compute in."""
  if not isinstance(v, int | float) or isinstance(v, bool):
    return False
  return v == 0 or _SMALLEST <= abs(v) <= _GREATEST  # of any integer, at which math.isfinite raises


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


def check(config: Mapping[str, Any], fields: Fields, path: str = "") -> None:
  """Raises a ConfigError naming the first field that is unknown, missing or out of range.

  >>> check({"epochs": 0}, {"epochs": integer(3, minimum=1)})
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: epochs=0: expected an integer >= 1 and < 2**31
  """
  for name in config:
    if name not in fields:
      raise unknown_name(f"field of {path.rstrip('.') or 'the config'}", name, fields)
  for name, field in fields.items():
    where = f"{path}{name}"
    if name not in config:
      raise ConfigError(f"{where} is missing from the config")
    value = config[name]
    if not isinstance(field, Field):
      if not isinstance(value, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"{where}={value!r}: expected a section with {', '.join(field)}")
      check(value, field, f"{where}.")
    elif not field.accepts(value):
      raise ConfigError(f"{where}={value!r}: expected {field.meaning}")
