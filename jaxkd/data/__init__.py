"""Data sets by name, from folders, arrays and other libraries; a pipeline; augmentation.

TFDS, grain, Pillow and Hugging Face's datasets are imported on first use.
"""

from __future__ import annotations

from jaxkd.data.arrays import from_arrays
from jaxkd.data.augment import augmentation, cutout, flip, mixup, normalize, pad_crop
from jaxkd.data.crops import centre_crop, random_resized_crop
from jaxkd.data.dataset import Dataset
from jaxkd.data.datasets import DATASETS, check_name, fake_dataset, load, load_options
from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples, RecordExamples
from jaxkd.data.folders import from_folder
from jaxkd.data.hugging_face import from_hugging_face
from jaxkd.data.multi_label import MultiLabelExamples
from jaxkd.data.npz import from_npz
from jaxkd.data.pipeline import evaluation_batches, training_batches
from jaxkd.data.prefixes import PREFIXES
from jaxkd.data.prepare import DataUnavailable
from jaxkd.data.sources import from_source
from jaxkd.data.subsets import per_class, split_off, with_unlabelled
from jaxkd.data.tfds_names import from_tfds
from jaxkd.data.trees import TreeExamples
from jaxkd.data.unlabelled import join_unlabelled
from jaxkd.data.validation import unseen_classes, validate_dataset

__all__ = [
  "DATASETS",
  "PREFIXES",
  "UNLABELLED",
  "ArrayExamples",
  "DataUnavailable",
  "Dataset",
  "Examples",
  "MultiLabelExamples",
  "RecordExamples",
  "TreeExamples",
  "augmentation",
  "centre_crop",
  "check_name",
  "cutout",
  "evaluation_batches",
  "fake_dataset",
  "flip",
  "from_arrays",
  "from_folder",
  "from_hugging_face",
  "from_npz",
  "from_source",
  "from_tfds",
  "join_unlabelled",
  "load",
  "load_options",
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
