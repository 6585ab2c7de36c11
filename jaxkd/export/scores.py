"""Scores of bundles on a data set: accuracy, cross-entropy and calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, evaluate, preprocessing
from jaxkd.errors import ConfigError
from jaxkd.losses._counting import over_positions
from jaxkd.types import Array, Batch, Network, Preprocessing

METRICS = ("accuracy", "cross_entropy", "calibration_error")


def find_bundles(directory: Path) -> dict[str, Path]:
  """Map the name of a predictor to its bundle.

  Args:
    directory: a bundle, whose name is "", or a run's work directory, whose predictors are named
      STAGE/PREDICTOR.

  Raises:
    ConfigError: if there is no bundle.
  """
  if (directory / "model.json").is_file():
    return {"": directory}
  root = directory / "bundles" if (directory / "bundles").is_dir() else directory
  found = sorted(path.parent for path in root.glob("**/model.json"))
  if not found:
    raise ConfigError(
      f"bundle={str(directory)!r}: no model.json there, so neither a bundle nor a run with bundles"
    )
  return {str(path.relative_to(root)): path for path in found}


def data_of(
  description: Mapping[str, Any],
  name: str | None = None,
  *,
  directory: str | None = None,
  load: Callable[..., data.Dataset] = data.load,
) -> data.Dataset:
  """Load the data set on which a bundle is to be scored.

  Args:
    description: of the bundle.
    name: as for `jaxkd.data.load`; None is the data set that the bundle names, with the image size
      and the test split of its run.
    directory: TFDS's data directory.
    load: `jaxkd.data.load`, for example with a cache.

  Raises:
    ConfigError: as `jaxkd.data.load`; or if the bundle names no data set, or other classes than
      the data set has.
  """
  chosen = name or description.get("data")
  if not isinstance(chosen, str):
    raise ConfigError("the bundle names no data set: --data must be given")
  options = description.get("data_options")
  known = data.load_options(options) if isinstance(options, Mapping) else {}
  if chosen != description.get("data"):
    # Pictures of any size; those of a square network become squares of its size.
    shape = description.get("image_shape") or (0, 1)
    known = {"image_size": shape[0]} if ":" in chosen and shape[0] == shape[1] else {}
  dataset = load(chosen, directory=directory, validation=0.0, **known)
  check_class_names(description, dataset)
  return dataset


def check_class_names(description: Mapping[str, Any], dataset: data.Dataset) -> None:
  """Raise a ConfigError if a bundle and a data set both name their classes, and differently."""
  ours, theirs = list(dataset.class_names), description.get("class_names")
  if ours and theirs and ours != theirs:
    raise ConfigError(
      f"data set {dataset.name!r} has other classes than the network: {_difference(ours, theirs)}"
    )


def _difference(ours: Sequence[str], theirs: Any) -> str:
  """Describe the first class whose name differs."""
  if len(ours) != len(theirs):
    return f"{len(ours)} of them, and the network has {len(theirs)}"
  number = next(n for n, name in enumerate(ours) if name != theirs[n])
  return f"class {number} is {ours[number]!r}, and the network's {theirs[number]!r}"


def score_network(
  network: Network,
  dataset: data.Dataset,
  *,
  split: str = "test",
  crop: int = 0,
  batch_size: int = 256,
) -> Mapping[str, float]:
  """Score a trained network on one split of a data set.

  The images are converted to the mean, std and size that the network was trained on
  (`network.preprocessing`); without it they are normalised as the data set's own. Other inputs stay
  as they are; of dense logits every position counts.

  Args:
    network: returns one Output; of several exits the last one counts.
    dataset: with the classes that the network predicts.
    split: "test", "validation" or "train".
    crop: side of the centre of the images that is used, as `data.resized_crop` of a run; 0 for all.
    batch_size: examples of one step.

  Returns:
    METRICS by name: a fraction, nats per example, and the expected calibration error of 15 bins.

  Raises:
    ConfigError: for a split that the data set does not have, or other classes or channels than the
      network's.
  """
  examples = getattr(dataset, split, None)
  if examples is None:
    raise ConfigError(f"split={split!r}: data set {dataset.name!r} has no such examples")
  if getattr(examples, "multi_label", False):
    raise ConfigError(
      f"data set {dataset.name!r}: labels {examples.labels.shape} are multi-hot: expected one "
      "class per example; the summary of a run has the scores of several"
    )
  prepare = preparation(network, dataset, crop)

  @jax.jit
  def step(variables: Mapping[str, Array], batch: Batch) -> tuple[dict, Array]:
    output = network.module.apply(variables, prepare(batch.inputs), train=False)
    logits = (output[-1] if isinstance(output, tuple) else output).logits
    if logits.shape[-1] != dataset.num_classes:
      raise ConfigError(
        f"the network predicts {logits.shape[-1]} classes, data set {dataset.name!r} has "
        f"{dataset.num_classes}"
      )
    sums = evaluate.score(logits, batch.labels, batch.weights, where=batch.mask)
    return sums, evaluate.calibration_bins(*_positions(logits, batch))

  variables = jax.device_put(network.variables)
  found = [
    jax.device_get(step(variables, batch))
    for batch in data.evaluation_batches(examples, batch_size=min(batch_size, len(examples)))
  ]
  means = {
    name: float(
      sum(np.float64(sums[name][0]) for sums, _ in found)
      / sum(np.float64(sums[name][1]) for sums, _ in found)
    )
    for name in METRICS[:2]
  }
  bins = jnp.asarray(sum(np.asarray(part, np.float64) for _, part in found))
  return {**means, METRICS[2]: evaluate.calibration_error(bins)}


def preparation(network: Network, dataset: data.Dataset, crop: int = 0) -> Callable[[Any], Any]:
  """Return the conversion of stored inputs of a data set to what a network was trained on.

  Args:
    network: as for `score_network`.
    dataset: data set whose inputs are converted.
    crop: as for `score_network`.

  Raises:
    ConfigError: for images of other channels, or inputs that are none for a network of images.
  """
  images = dataset.image_shape
  given = None
  if images is not None:
    size = (crop, crop) if crop else images[:2]
    given = Preprocessing(dataset.mean, dataset.std, size)
  model = preprocessing.as_trained(network, given)

  def prepare(inputs: Any) -> Any:
    if images is not None:
      inputs = data.normalize(inputs, dataset.mean, dataset.std)
      inputs = data.centre_crop(inputs, size=crop) if crop else inputs
    return preprocessing.inputs_of(model, inputs)

  return prepare


def crop_of(description: Mapping[str, Any], dataset: data.Dataset) -> int:
  """Return the side of the centre of images that a bundle's run saw; 0 for all of them.

  Args:
    description: of the bundle.
    dataset: the data set to score it on; if it is another than that of its run, all is used.

  Raises:
    ConfigError: if one of the two has images, and the other has none.
  """
  shape, taken = dataset.image_shape, "no images" if "inputs" in description else "images"
  if (taken == "images") != (shape is not None):
    have = "no images" if shape is None else "images"
    raise ConfigError(f"takes {taken}, and data set {dataset.name!r} has {have}")
  if shape is None or dataset.name != description.get("data"):
    return 0
  side = description["image_shape"][0]
  return side if side < shape[0] else 0


def _positions(logits: Array, batch: Batch) -> tuple[Array, Array, Array]:
  """Return logits (n, C), labels (n,) and weights (n,) of all positions of a batch."""
  leading = logits.shape[:-1]
  weights = over_positions("weights do not belong", jnp.asarray(batch.weights), logits)
  if batch.mask is not None:
    counted = over_positions("the mask does not belong", jnp.asarray(batch.mask), logits)
    weights = jnp.where(counted != 0, weights, 0.0)
  if batch.labels.shape != leading:
    raise ConfigError(f"labels {batch.labels.shape} do not belong to logits {logits.shape}")
  return logits.reshape(-1, logits.shape[-1]), batch.labels.reshape(-1), weights.reshape(-1)
