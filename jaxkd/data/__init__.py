"""Data sets by name or of any arrays, subsets, a grain pipeline, augmentation on the device.

TFDS and grain are imported on first use.
"""

from __future__ import annotations

from jaxkd.data.augment import augmentation, cutout, flip, mixup, normalize, pad_crop
from jaxkd.data.crops import centre_crop, random_resized_crop
from jaxkd.data.datasets import (
  DATASETS,
  Dataset,
  fake_dataset,
  load,
)
from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples, RecordExamples
from jaxkd.data.pipeline import evaluation_batches, training_batches
from jaxkd.data.prepare import DataUnavailable
from jaxkd.data.subsets import per_class, split_off, with_unlabelled
from jaxkd.data.trees import TreeExamples
from jaxkd.data.validation import unseen_classes, validate_dataset

__all__ = [
  "DATASETS",
  "UNLABELLED",
  "ArrayExamples",
  "DataUnavailable",
  "Dataset",
  "Examples",
  "RecordExamples",
  "TreeExamples",
  "augmentation",
  "centre_crop",
  "cutout",
  "evaluation_batches",
  "fake_dataset",
  "flip",
  "load",
  "mixup",
  "normalize",
  "pad_crop",
  "per_class",
  "random_resized_crop",
  "split_off",
  "training_batches",
  "unseen_classes",
  "validate_dataset",
  "with_unlabelled",
]
