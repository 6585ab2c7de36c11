"""Function matching: the recipe of a patient and consistent teacher, as a config of `kd`."""

from __future__ import annotations

from typing import Any

from jaxkd.experiment.config import base_config

# The name of the recipe in configs, such as configs/digits.py:patient.
PATIENT = "patient"


def recipe_or_method(name: str) -> Any:
  """Return the base config of a method, or of `kd` for the recipe "patient"."""
  return base_config("kd" if name == PATIENT else name)


def match_functions(config: Any, *, epochs: int) -> None:
  """Set what function matching changes in a config of `kd`.

  The student learns the teacher's function, not labels: there is no label term, and soft targets
  are at T = 1. The teacher sees the very images that the student sees, augmented and mixed, as in
  every method here. Mixtures have a uniform share, so that they cover the space between images. The
  training is long, with a cosine schedule after a warm-up. A teacher that is trained in the same
  run learns from mixtures, too; one that comes trained (`teacher.bundle`, `teacher.weights`) does
  not.

  Args:
    config: config of `kd`, with the data and networks of its file.
    epochs: of the student.

  Source: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR
  2022: T = 1, mixup with a uniform share, cosine schedule, up to 9,600 epochs on ImageNet. Its
  optimizer and its pools of images of several data sets are not set here: `data.unlabelled` and
  `data.unlabelled_folder` add images.
  """
  config.method.label_weight, config.method.weight = 0.0, 1.0
  config.method.temperature = 1.0
  config.data.mixup = 1.0  # Beta(1, 1) is uniform
  config.student.epochs = epochs
  config.student.schedule = "cosine"
  config.student.warmup_epochs = min(5.0, epochs / 10)
