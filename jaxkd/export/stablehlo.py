"""Networks as StableHLO functions, from raw images to logits, that run without this library.

A function is lowered on this machine for every requested platform and contains the weights. Loading
it needs jax and flatbuffers, jax's serialization format:

    from jax import export
    function = export.deserialize(bytearray(open("function.stablehlo", "rb").read()))
    logits = function.call(images)
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxkd.data import normalize
from jaxkd.errors import ConfigError, needed_by, one_line, unknown_name
from jaxkd.models import from_function
from jaxkd.shapes import InputShape, batched, from_described
from jaxkd.types import Array, Network, Output, Preprocessing

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Start of the StableHLO module inside jax's serialization, which has no magic number of its own.
_STABLEHLO = re.compile(rb"ML\xefR.{1,4}StableHLO_v", re.DOTALL)


def export_function(
  network: Network,
  description: Mapping[str, Any],
  *,
  platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
  batch_size: int | None = None,
) -> export.Exported:
  """Export a network in evaluation mode as a function of raw images, or of other inputs.

  Args:
    network: result of `jaxkd.export.bundles.load_bundle`, or any whose module returns an Output.
    description: its "image_shape", [H, W, C], and "mean" and "std", one number per channel, for
      pixel values scaled to 0..1; or its "inputs" (`jaxkd.shapes.described`).
    platforms: some of PLATFORMS. This machine need not have them.
    batch_size: number of images, or None for a function of any number.

  Returns:
    A function from uint8 images (B, H, W, C), 0..255 as stored in the data set, to float32 logits
    (B, classes). It normalises the images itself. Other inputs are one argument, a pytree of
    arrays (B, ...), and stay as they are; logits are (B, ..., classes).

  Raises:
    ConfigError: for an incomplete description, an unknown platform or a batch size below 1, and
      for a module that has several outputs or does not support a symbolic batch size.
  """
  shape, prepare = stored_inputs(description)
  for platform in platforms:
    if platform not in PLATFORMS:
      raise unknown_name("platform", platform, PLATFORMS)
  if not platforms:
    raise ConfigError(f"platforms: expected at least one of {', '.join(PLATFORMS)}")
  if batch_size is not None and batch_size < 1:
    raise ConfigError(f"batch_size={batch_size}: expected a number of at least 1, or None")
  module = network.module
  variables = jax.tree.map(np.asarray, dict(network.variables))

  def predict(inputs: Any) -> Array:
    output = module.apply(variables, prepare(inputs), False)
    if not isinstance(output, Output) or output.logits is None:
      raise ConfigError(
        f"a {type(module).__name__} does not return one Output with logits: there is no single "
        "prediction to export; jaxkd.models.cut_at_exit selects one of several exits"
      )
    return output.logits.astype(jnp.float32)

  sizes = export.symbolic_shape("batch") if batch_size is None else (batch_size,)
  inputs = batched(shape, sizes)
  try:
    return export.export(jax.jit(predict), platforms=tuple(platforms))(inputs)
  except (jax.errors.InconclusiveDimensionOperation, TypeError, AttributeError) as error:
    # jax 0.12 fails inside where the batch size would become an array.
    foreign = isinstance(error, AttributeError) and "process_primitive" not in str(error)
    if batch_size is not None or foreign:
      raise
    # Python code that depends on the batch size, such as a loop over the images.
    reason = str(error).splitlines()[0]
    raise ConfigError(
      f"a {type(module).__name__} cannot be exported for any batch size ({reason}); give batch_size"
    ) from error


def save_function(path: str | Path, exported: export.Exported) -> None:
  """Write an exported function to a file atomically.

  Args:
    path: the file; an existing exported function is replaced.
    exported: result of `export_function`.

  Raises:
    ConfigError: if anything else is at `path`, which is not changed, or the file cannot be written.
    MissingPackage: without the package flatbuffers.
  """
  target = Path(path)
  if target.exists() and not is_function(target):
    raise ConfigError(f"{target} exists and is not an exported function: nothing was written")
  with needed_by("writing an exported function"):
    importlib.import_module("flatbuffers")
  written = exported.serialize()
  partial = target.with_name(target.name + ".partial")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(written)
    partial.replace(target)
  except OSError as error:
    raise ConfigError(f"{target} cannot be written: {error}") from error


def is_function(path: Path) -> bool:
  """Check whether a file holds an exported function, without loading it."""
  return path.is_file() and _STABLEHLO.search(path.read_bytes()) is not None


def stored_inputs(
  description: Mapping[str, Any],
) -> tuple[InputShape, Callable[[Any], Any]]:
  """Return the shapes of one example as stored, and the preparation of inputs for the network.

  Args:
    description: of a bundle: "image_shape", "mean" and "std", or "inputs".

  Returns:
    The shapes and types of one example, uint8 (H, W, C) for images, and the function of stored
    inputs (B, ...) that normalises images; other inputs stay as they are.

  Raises:
    ConfigError: for an incomplete description.
  """
  if "inputs" in description:
    return from_described("description", description["inputs"]), lambda inputs: inputs
  shape, mean, std = _preprocessing(description)
  stored = jax.ShapeDtypeStruct(shape, jnp.uint8)
  return stored, lambda images: normalize(images, mean, std)


def load_network(path: str | Path, given: Preprocessing | None = None) -> Network:
  """Load an exported function of images as a frozen teacher.

  The file is one of `export_function`, or any of jax.export with one array of images and one of
  logits. Its weights are constants of the function. Images that it takes as uint8 are made of
  those of the run, rounded to pixel values of 0..255.

  Args:
    path: the file.
    given: images of the run; their mean and std are assumed for a function of normalised images.

  Returns:
    The network, without variables, and with the images that the function takes.

  Raises:
    ConfigError: for a file that holds no exported function; a function of other arguments, of a
      fixed batch size, or for other platforms than this machine's.
  """
  file = Path(path)
  if not is_function(file):
    raise ConfigError(f"{file} is not an exported function of jax.export")
  try:
    function = export.deserialize(bytearray(file.read_bytes()))
  except Exception as error:  # the reader of a damaged file raises any type
    raise ConfigError(f"{file}: damaged ({type(error).__name__}: {one_line(error)})") from error
  if len(function.in_avals) != 1 or len(function.in_avals[0].shape) != 4:
    taken = ", ".join(str(aval.shape) for aval in function.in_avals)
    raise ConfigError(f"{file} takes arrays of shapes {taken}: expected images (B, H, W, C)")
  [images] = function.in_avals
  batch, *size = images.shape
  if isinstance(batch, int):
    raise ConfigError(
      f"{file} takes {batch} images at a time: expected a function of any number, exported with "
      "a symbolic batch size"
    )
  platform = {"gpu": ("cuda", "rocm")}.get(jax.default_backend(), (jax.default_backend(),))
  if not set(platform) & set(function.platforms):
    raise ConfigError(
      f"{file} was exported for {', '.join(function.platforms)}, this machine has {platform[0]}"
    )
  known = all(isinstance(n, int) for n in size)
  if images.dtype == jnp.uint8:
    if not known:
      raise ConfigError(f"{file} takes images {images.shape}: expected a fixed size")
    pixels = Preprocessing((0.0,) * size[2], (1 / 255,) * size[2], (size[0], size[1]))
    return from_function(_OfPixels(function), preprocessing=pixels, name=str(file))
  if given is not None and known and len(given.mean) == size[2]:
    given = dataclasses.replace(given, image_size=(size[0], size[1]))
  return from_function(_called(function), preprocessing=given, name=str(file))


def _called(function: export.Exported) -> Callable[[Array], Any]:
  """Return the call of a function, which jax.vmap can map: its axis joins that of the images."""

  @jax.custom_batching.custom_vmap
  def run(images: Array) -> Any:
    return function.call(images)

  @run.def_vmap
  def mapped(axis_size: int, in_batched: Any, images: Array) -> Any:
    found = run(images.reshape(-1, *images.shape[2:]))
    split = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), found)
    return split, jax.tree.map(lambda _: True, found)

  return run


class _OfPixels:
  """An exported function of uint8 images as one of floats in 0..255."""

  def __init__(self, function: export.Exported) -> None:
    self._call = _called(function)

  def __call__(self, images: Array) -> Any:
    pixels = jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)
    return self._call(pixels)


def takes_pixels(network: Network) -> bool:
  """Check whether a network of `load_network` takes pixel values of 0..255."""
  return isinstance(network.module.function, _OfPixels)


def _preprocessing(
  description: Mapping[str, Any],
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
  """Return the description's image_shape, mean and std."""
  try:
    height, width, channels = (int(size) for size in description["image_shape"])
    mean = tuple(float(value) for value in description["mean"])
    std = tuple(float(value) for value in description["std"])
  except (KeyError, TypeError, ValueError) as error:
    raise ConfigError(
      f"description: expected image_shape, [height, width, channels], mean and std ({error!r})"
    ) from error
  if not len(mean) == len(std) == channels or min(std) <= 0:
    raise ConfigError(
      f"description: mean={list(mean)}, std={list(std)}: expected {channels} each, one per "
      "channel, and std above 0"
    )
  return (height, width, channels), mean, std
