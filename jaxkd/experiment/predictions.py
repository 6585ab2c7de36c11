"""Predictions and features of trained networks on the splits of a data set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data
from jaxkd.errors import ConfigError, one_line
from jaxkd.export import scores
from jaxkd.types import Network, Output

# Numbers of examples, and of values of a stage, from which features are compared.
_EXAMPLES = 256
_VALUES = 2**25


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A trained network, and how it sees the examples of a data set.

  Attributes:
    name: in a report, and in messages.
    network: the network.
    description: of its bundle.
    prepare: stored inputs of the data set -> inputs of the network.
    dataset: the data set.
  """

  name: str
  network: Network
  description: Mapping[str, Any]
  prepare: Callable[[Any], Any]
  dataset: data.Dataset

  def output(self, variables: Any, inputs: Any) -> Output:
    """Return the output for stored inputs; of several exits the last one."""
    found = self.network.module.apply(variables, self.prepare(inputs), train=False)
    return found[-1] if isinstance(found, tuple) else found

  @functools.cached_property
  def logits(self) -> Callable[[Any, Any], Any]:
    """(variables, stored inputs) -> logits (B, C) float32, compiled once for each shape."""

    def run(variables: Any, inputs: Any) -> Any:
      return jnp.asarray(self.output(variables, inputs).logits, jnp.float32)

    return jax.jit(run)


def predictor(
  name: str, network: Network, description: Mapping[str, Any], dataset: data.Dataset
) -> Predictor:
  """Return a network as a predictor of a data set, checked by tracing it.

  Args:
    name: its name in a report, and in messages.
    network: network of a bundle.
    description: of the bundle.
    dataset: the data set.

  Raises:
    ConfigError: naming it, for other classes, channels or inputs than the data set has, another
      image size if the network does not say how its images were prepared, and dense predictions.
  """
  try:
    scores.check_class_names(description, dataset)
    shape, size = dataset.image_shape, description.get("image_shape")
    if network.preprocessing is None and shape and size and tuple(size) != tuple(shape):
      raise ConfigError(
        f"takes images {_size(size)}, and data set {dataset.name!r} has images {_size(shape)}"
      )
    crop = scores.crop_of(description, dataset)
    found = Predictor(
      name, network, description, scores.preparation(network, dataset, crop), dataset
    )
    stored = dataset.test.fetch(np.arange(1))
    try:
      traced = jax.eval_shape(found.output, network.variables, jax.tree.map(jnp.asarray, stored))
    except ConfigError:
      raise
    except Exception as error:  # any kind: the module's own code raises it
      raise ConfigError(
        f"does not take the inputs of {dataset.name!r}: {one_line(error)}"
      ) from error
    if traced.logits is None or traced.logits.ndim != 2:
      shown = None if traced.logits is None else traced.logits.shape
      raise ConfigError(f"predicts logits {shown}, expected one class per example, (B, classes)")
    if traced.logits.shape[1] != dataset.num_classes:
      raise ConfigError(
        f"predicts {traced.logits.shape[1]} classes, data set {dataset.name!r} has "
        f"{dataset.num_classes}"
      )
  except ConfigError as error:
    raise ConfigError(f"{name}: {error}") from error
  return found


def predictions(
  subject: Predictor, examples: data.Examples, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
  """Return logits (N, C) and labels (N,) of the labelled examples of a split, in order.

  Args:
    subject: the predictor.
    examples: the split.
    batch_size: examples of one step; a smaller rest is padded.
  """
  variables = jax.device_put(subject.network.variables)
  logits, labels = [], []
  for batch in data.evaluation_batches(examples, batch_size=batch_size):
    counted = np.asarray(batch.weights) > 0
    logits.append(np.asarray(subject.logits(variables, batch.inputs))[counted])
    labels.append(np.asarray(batch.labels)[counted])
  return np.concatenate(logits), np.concatenate(labels)


def features(subject: Predictor, inputs: Any, batch_size: int = 64) -> dict[str, np.ndarray]:
  """Return the features of every stage for stored inputs: stage -> (N, ...) float32.

  The stages are in the order of the network.

  Args:
    subject: the predictor; a network without features has no stages.
    inputs: stored inputs, (N, ...).
    batch_size: examples of one step.
  """
  stages: list[str] = []

  @jax.jit
  def step(variables: Any, inputs: Any) -> Any:
    found = subject.output(variables, inputs).features
    stages[:] = found  # the order of the network; jax sorts the keys of a dict
    return {stage: jnp.asarray(value, jnp.float32) for stage, value in found.items()}

  variables = jax.device_put(subject.network.variables)
  count = len(jax.tree.leaves(inputs)[0])
  parts: list[dict[str, Any]] = []
  for start in range(0, count, batch_size):
    own = jax.tree.map(lambda x, start=start: x[start : start + batch_size], inputs)
    parts.append(jax.device_get(step(variables, own)))
  return {stage: np.concatenate([part[stage] for part in parts]) for stage in stages}


def compared_examples(subject: Predictor, examples: data.Examples) -> np.ndarray:
  """Return the numbers of the examples whose features are compared: the first of a split.

  There are fewer where one stage of the network is large.
  """
  stored = jax.tree.map(jnp.asarray, examples.fetch(np.arange(1)))
  traced = jax.eval_shape(subject.output, subject.network.variables, stored)
  largest = max((value.size for value in traced.features.values()), default=1)
  return np.arange(min(len(examples), _EXAMPLES, max(16, _VALUES // largest)))


def _size(shape: Any) -> str:
  return "x".join(str(side) for side in shape)
