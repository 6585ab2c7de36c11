"""TFDS builders of this project. They need no TensorFlow: images are stored as plain tensors."""

from jaxkd.errors import needed_by

with needed_by("jaxkd.data.builders"):
  import tensorflow_datasets  # noqa: F401 - which every module here imports
