"""A data set from random-access sources of (image, label)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxkd.data.assembly import MEMORY_LIMIT, Parts, check_side
from jaxkd.data.dataset import Dataset
from jaxkd.data.rows import Rows, dataset_of_rows


def from_source(
  train: Any,
  *,
  validation: Any = 0.1,
  test: Any = None,
  classes: int | Sequence[str] | None = None,
  seed: int = 0,
  image_size: int = 0,
  memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
  """Return a data set of sources that have `__len__` and `__getitem__`.

  An item is (image, label) or a mapping {"image", "label"}. An image is an array as for
  `from_arrays`, a Pillow image or the bytes of a picture file. Every item is read twice, one at a
  time, and must be the same each time.

  Args:
    train: the source of training examples.
    validation: a source; or a fraction or count of the training examples; 0 for none.
    test: a source; or a fraction or count of the training examples; None is 0.2. The choice does
      not depend on `seed`, so that runs of several seeds have the same test examples.
    classes: number of classes, or their names; None is the largest label + 1.
    seed: seed of the choice of validation examples.
    image_size: side of squares to which all images are resized and cropped; 0 keeps their size.
    memory_limit: bytes; the images of a larger split are read on access.

  Raises:
    ConfigError: naming the split and the row.

  >>> import numpy as np
  >>> pairs = [(np.full((4, 4), 10 * n, np.uint8), n % 2) for n in range(20)]
  >>> data = from_source(pairs, validation=0)
  >>> len(data.train), len(data.test), data.num_classes
  (16, 4, 2)
  """
  check_side(image_size)
  sources, sizes = {"train": train}, {}
  for name, part in (("validation", validation), ("test", test)):
    if hasattr(part, "__getitem__"):
      sources[name] = part
    else:
      sizes[name] = part
  rows = {split: Rows(source, split, side=image_size) for split, source in sources.items()}
  parts = Parts(**sizes, seed=seed)
  return dataset_of_rows("source", rows, parts, classes=classes, memory_limit=memory_limit)
