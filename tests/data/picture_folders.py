"""Folders of small pictures, of classes that differ in brightness."""

import numpy as np
from PIL import Image


def picture(label, *, size=(10, 8), mode="RGB", seed=0):
  """Return a picture of width x height `size`, brighter for larger labels, with noise."""
  rng = np.random.default_rng((label, seed))
  pixels = 60 * label + rng.integers(0, 60, (size[1], size[0], 3))
  return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def write_split(folder, classes=("cat", "dog", "élan"), count=6, suffix="png", **options):
  """Write `count` pictures of each class into FOLDER/CLASS; return the folder."""
  for label, name in enumerate(classes):
    (folder / name).mkdir(parents=True)
    for number in range(count):
      file = folder / name / f"{number}.{suffix}"
      picture(label, seed=number, **options).save(file)
  return folder


def write_splits(folder, *, names=("train", "val", "test"), **options):
  """Write a split for each name into FOLDER; return the folder."""
  for name in names:
    write_split(folder / name, **options)
  return folder
