"""Cases: methods on pairs of real networks; one function builds their schemes."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

import numpy as np

from jaxkd import methods as registry
from jaxkd.data import ArrayExamples, Dataset
from jaxkd.experiment import build, config
from jaxkd.types import Scheme
from tests import rows

NUM_CLASSES = 4


class Pair(NamedTuple):
  """Two models by name, and the (H, W, C) of their images."""

  teacher: str
  student: str
  image_shape: tuple[int, int, int]


PAIRS = {
  "resnets": Pair("resnet8_w8", "resnet8_w4", (8, 8, 1)),
  "vit-vgg": Pair("vit_tiny", "vgg8_w8", (16, 16, 3)),
}

# "METHOD/field=value/...": fields of the "method" section, or with a dot of another section.
OFTEN = (
  # The default of several generations repeats what one does.
  *(name for name in registry.METHODS if name != "born_again"),
  "fitnets/two_stage=True",
  "simkd/classifier='joint'",
  "simkd/classifier='sequential'",
  "born_again/generations=1",
  "born_again/generations=1/form='confidence'",
  "born_again/generations=1/form='permuted'",
  "kd+at",
)
# Forms of methods that take another way through the library.
OTHERS = (
  "kd/teacher.count=2",
  "kd/combine='logits'/teacher.count=2",
  "kd/ramp='linear'/ramp_epochs=4.0/ramp_start=0.5",
  "kd+rkd/teacher.count=2",
  "at/norm='paper'/power=4.0",
  "gradient_at/symmetry_weight=1.0",
  "nst/kernel='gaussian'",
  "nst/where='preactivations'",
  "fsp/two_stage=False/norm='columns'/pool='max'",
  "ft/teacher.count=2",
  "ft/normalization='repdistiller'/reconstruction='mse'/translator_batch_norm=True",
  "ab/two_stage=False",
  "simkd/teacher.count=2",
  "simkd/reused_stages=1/projector='1x1-dw3x3-1x1'",
  "born_again/generations=2/label_weight=0.0",
  "dml/peers=3/models=('student','wrn_10_1')/target='ensemble'",
  "dml/updates='alternating'/detached=False",
  "one/ramp='none'/detached=False",
  "byot/head='attention'/feature='distance'/soft_weight=0.3/feature_weight=0.03",
  "multi_exit/teachers='ensemble'/average='mean'",
  "multi_exit/teachers='later'/head='conv'/adapt_temperature=False/temperature=2.0",
  "multi_exit/student.model='msdnet_small'",
  *rows.joined("RECORDED"),
)

# One for each way in which an objective is put together; every case is among the long tests.
QUICK = ("teacher", "fitnets", "simkd", "dml", "kd+at")

# Phases that are the same in most methods: `make test` has those of these variants alone.
SHARED = ("teacher", "alone")
WITH_SHARED = ("teacher", "alone", "multi_exit")

# (variant, pair) -> the library's error message for pairs that it refuses.
REFUSED = {
  ("ab", "vit-vgg"): "compares preactivations, and the teacher has none",
  ("ab/two_stage=False", "vit-vgg"): "compares preactivations, and the teacher has none",
  ("nst/where='preactivations'", "vit-vgg"): "the teacher has no feature maps",
  **rows.merged("REFUSED"),
}


def methods() -> set[str]:
  """Every method that the library has."""
  return set(registry.METHODS)


def schemes_of(variant: str, pair: Pair) -> dict[str, Scheme]:
  """Name -> scheme of every phase of training that a config makes, in their order."""
  method, *fields = variant.split("/")
  settings = config.base_config(method)
  settings.batch_size = 8
  settings.teacher.model, settings.student.model = pair.teacher, pair.student
  settings.teacher.epochs, settings.student.epochs = 2, 4
  settings.data.crop = 0
  for field in fields:
    name, _, value = field.partition("=")
    section, _, name = name.rpartition(".")
    settings[section or "method"][name] = ast.literal_eval(value)
  config.check_config(settings)
  stages = build.phases(settings, _dataset(pair.image_shape), traced=False)
  return {stage.name: stage.scheme for stage in stages}


def _dataset(image_shape: tuple[int, int, int]) -> Dataset:
  """Sixteen images to train on: ramps of epochs go by how many there are."""

  def examples(count: int) -> ArrayExamples:
    numbers: Any = np.arange(count, dtype=np.int32)
    return ArrayExamples(np.zeros((count, *image_shape), np.uint8), numbers % NUM_CLASSES, numbers)

  channels = image_shape[-1]
  scaled = ((0.5,) * channels, (0.3,) * channels)
  return Dataset("drawn", examples(16), examples(8), examples(8), NUM_CLASSES, image_shape, *scaled)
