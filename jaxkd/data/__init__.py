"""Data: TFDS sources, subsets, a grain pipeline, augmentation on the device.

TFDS and grain are imported when first needed.
"""

from __future__ import annotations

from jaxkd.data.augment import augmentation, cutout, flip, mixup, normalize, pad_crop
from jaxkd.data.crops import centre_crop, random_resized_crop
from jaxkd.data.datasets import DATASETS, Dataset, check_dataset, load, stand_in, unseen_classes
from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples, RecordExamples
from jaxkd.data.pipeline import evaluation_batches, training_batches
from jaxkd.data.prepare import DataUnavailable
from jaxkd.data.subsets import per_class, split_off, with_unlabelled

__all__ = [
  "DATASETS",
  "UNLABELLED",
  "ArrayExamples",
  "DataUnavailable",
  "Dataset",
  "Examples",
  "RecordExamples",
  "augmentation",
  "centre_crop",
  "check_dataset",
  "cutout",
  "evaluation_batches",
  "flip",
  "load",
  "mixup",
  "normalize",
  "pad_crop",
  "per_class",
  "random_resized_crop",
  "split_off",
  "stand_in",
  "training_batches",
  "unseen_classes",
  "with_unlabelled",
]
