"""Conversion, on the device, from a run's image preprocessing to that of a trained network.

A trained network expects images of the mean, standard deviation and size that it was trained with;
the images of a run may have others. `as_trained` converts them:

    given = Preprocessing((0.5,), (0.5,), (28, 28))
    teacher = as_trained(load_bundle("runs/digits/bundles/teacher/teacher")[0], given)
    scheme = methods.offline(student, {"teacher": teacher}, distillations)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.types import Array, Network, Preprocessing


@dataclasses.dataclass(frozen=True)
class Converted:
  """A model whose input is converted from a run's preprocessing to the model's own.

  Schemes accept it in place of a model. Its variables are those of the model.

  Attributes:
    module: the model.
    given: preprocessing of the images that the scheme passes.
    wanted: preprocessing of the images that the model was trained on.
  """

  module: Any
  given: Preprocessing
  wanted: Preprocessing

  def inputs(self, images: Array) -> Array:
    """The images with the model's preprocessing."""
    return convert(images, given=self.given, wanted=self.wanted)


def as_trained(network: Network, given: Preprocessing | None) -> Any:
  """A network's module for a scheme, with its input converted to the network's preprocessing.

  Args:
    network: the network; if its `preprocessing` is None, the images are not converted.
    given: preprocessing of the images of the run; None if its inputs are no images.

  Returns:
    The module itself if the two do not differ, else a Converted.

  Raises:
    ConfigError: if the numbers of channels differ, or the network takes images and the run has
      none.
  """
  wanted = network.preprocessing
  if wanted is None or wanted == given:
    return network.module
  if given is None:
    raise ConfigError("the network takes images, and the inputs of the run are none")
  _check_channels(given, wanted)
  return Converted(network.module, given, wanted)


def plain(model: Any) -> Any:
  """The model without the conversion of its input."""
  return model.module if isinstance(model, Converted) else model


def inputs_of(model: Any, images: Array) -> Array:
  """The input of a model, converted or not, for the images of a run."""
  return model.inputs(images) if isinstance(model, Converted) else images


def convert(images: Array, *, given: Preprocessing, wanted: Preprocessing) -> Array:
  """Convert normalised images to another normalisation and size.

  Without a difference there is no operation. Images are resized by linear interpolation with
  antialiasing.

  Args:
    images: (B, H, W, C), (x - given.mean) / given.std of pixel values x in 0..1.
    given: preprocessing of `images`; its size is not used.
    wanted: preprocessing of the result.

  Raises:
    ConfigError: if the numbers of channels differ.

  >>> given, wanted = Preprocessing((0.5,), (0.5,), (1, 1)), Preprocessing((0.0,), (0.25,), (1, 1))
  >>> convert(jnp.ones((1, 1, 1, 1)), given=given, wanted=wanted).item()
  4.0
  """
  _check_channels(given, wanted)
  if (given.mean, given.std) != (wanted.mean, wanted.std):
    mean, std, new_mean, new_std = (
      np.asarray(values, np.float64) for values in (given.mean, given.std, wanted.mean, wanted.std)
    )
    shape = (1,) * (images.ndim - 1) + (-1,)
    scale, shift = (
      jnp.asarray(values.reshape(shape), images.dtype)
      for values in (std / new_std, (mean - new_mean) / new_std)
    )
    images = images * scale + shift
  if images.shape[-3:-1] != wanted.image_size:
    size = (*images.shape[:-3], *wanted.image_size, images.shape[-1])
    images = jax.image.resize(images, size, "linear", antialias=True)
  return images


def from_description(where: str, description: Mapping[str, Any]) -> Preprocessing | None:
  """The preprocessing in a bundle's description; None if it has no mean or std, or no images.

  Raises:
    ConfigError: for a mean or std that is not one number per channel.
  """
  if "inputs" in description:
    return None
  height, width, channels = (int(size) for size in description["image_shape"])
  if description.get("mean") is None or description.get("std") is None:
    return None
  return Preprocessing(
    numbers(f"{where}: mean", description["mean"], channels),
    numbers(f"{where}: std", description["std"], channels, positive=True),
    (height, width),
  )


def numbers(where: str, values: Any, channels: int, *, positive: bool = False) -> tuple[float, ...]:
  """A mean (`positive`: a standard deviation) with one number per channel, checked, as floats.

  Raises:
    ConfigError: naming `where` and the value, for values that are not one number per channel.
  """
  wanted = f"expected {channels} finite numbers{' > 0' if positive else ''}, one per channel"
  if not isinstance(values, list | tuple) or len(values) != channels:
    raise ConfigError(f"{where}={values!r}: {wanted}")
  for value in values:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or (positive and value <= 0):
      raise ConfigError(f"{where}={values!r}: {wanted}")
  return tuple(float(value) for value in values)


def _check_channels(given: Preprocessing, wanted: Preprocessing) -> None:
  if len(given.mean) != len(wanted.mean):
    raise ConfigError(
      f"images of {len(given.mean)} channels cannot be converted to {len(wanted.mean)} channels, "
      "which the network was trained on"
    )
