"""scikit-learn's digits as a TFDS data set: nothing to download."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxkd.data.builders import plain
from jaxkd.data.subsets import permutation, stratified
from jaxkd.errors import needed_by

_TEST_EXAMPLES = 360
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
  """1797 handwritten digits of 8x8 pixels, 1437 to train and 360 to test.

  scikit-learn's copy of the test part of UCI's "Optical Recognition of Handwritten Digits" has no
  split. This one is stratified and fixed: `jaxkd.data.subsets` with seed 0 marks 360 examples for
  the test, and the rest is put into one fixed order, since the source is sorted by writer. Pixels
  of 0..16 are stored as round(255 / 16 * pixel), which can be undone.
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return plain.image_info(
      self,
      image_shape=(8, 8, 1),
      num_classes=10,
      description="Handwritten digits of 8x8 pixels, from scikit-learn, with a fixed split.",
      homepage="https://archive.ics.uci.edu/dataset/80",
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
    with needed_by("preparing digits"):
      from sklearn.datasets import load_digits  # Needed once, to prepare.

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    order = permutation(len(labels), _SPLIT_SEED)
    images, labels = images[order], labels[order]
    test = stratified(labels, _TEST_EXAMPLES, _SPLIT_SEED)
    return {
      "train": self._generate_examples(images[~test], labels[~test]),
      "test": self._generate_examples(images[test], labels[test]),
    }

  def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Any:
    return plain.records(images, labels)
