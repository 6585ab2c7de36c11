"""Networks and data that a program gives to a run, in place of those that a config names.

A run refuses a work directory that holds the run of another config. A network has no name in a
config, so its section's `model` is the class and a digest, "Net#1f0c9a2b": of the architecture, and
of the weights of a teacher. The name of data has a digest of their content.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxkd.data import (
  UNLABELLED,
  Dataset,
  MultiLabelExamples,
  TreeExamples,
  from_arrays,
  split_off,
  validate_dataset,
)
from jaxkd.data.multi_label import MULTI, SINGLE
from jaxkd.errors import ConfigError
from jaxkd.experiment import own_models
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.types import Network

# Number of images of a split whose pixels are part of a data set's digest.
_SAMPLE = 256


@dataclasses.dataclass(frozen=True)
class Given:
  """The networks of a program; without any, those of the config are used.

  Attributes:
    student: a linen module that returns an Output, several exits, or logits alone; or None.
    teachers: trained networks, which are not trained further.
  """

  student: nn.Module | None = None
  teachers: tuple[Network, ...] = ()

  def student_for(self, settings: Any, data: Dataset) -> tuple[nn.Module, Any] | None:
    """Return the student and the shapes of its output; None if the config names it.

    Raises:
      ConfigError: if it cannot take the inputs, has other classes, or the config has a field that
        only a model by name follows.
    """
    if self.student is None:
      return None
    where = f"student {type(self.student).__name__}"
    for field, value, unset in (
      ("compute_dtype", settings.compute_dtype, "float32"),
      ("student.dropout", settings.student.dropout, 0.0),
    ):
      if value != unset:
        raise ConfigError(f"{field}={value!r}: expected {unset!r} with a module as the student")
    module = self.student
    # Batch statistics of all devices, as for models by name.
    if settings.sync_batch_norm and getattr(module, "axis_name", AXIS_NAME) is None:
      module = module.clone(axis_name=AXIS_NAME)
    trace = functools.partial(
      own_models.initial_shapes, f"{where} cannot take {data.name}'s inputs", data.input_shape
    )
    module, output = own_models.with_output(where, module, trace)
    for one in output if isinstance(output, tuple) else (output,):
      if one.logits.shape[-1] != data.num_classes:
        raise ConfigError(
          f"{where} returns {one.logits.shape[-1]} logits, and {data.name} has {data.num_classes} "
          "classes"
        )
    return module, output


NOTHING_GIVEN = Given()


def is_given(name: str) -> bool:
  """Check whether the `model` of a config's section stands for a network of a program."""
  return "#" in name


def name_of(module: nn.Module, variables: Any = None) -> str:
  """Return the class of a module and a digest of its fields, and of its variables if given.

  >>> name_of(nn.Dense(3)) == name_of(nn.Dense(3)), name_of(nn.Dense(3)) == name_of(nn.Dense(4))
  (True, False)
  """
  # Addresses of functions differ from process to process.
  text = re.sub(r" at 0x[0-9a-f]+", "", repr(module))
  digest = hashlib.sha256(text.encode())
  for path, leaf in jax.tree.leaves_with_path(variables):
    array = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return f"{type(module).__name__}#{digest.hexdigest()[:8]}"


def data_set(
  given: Any, *, validation: float, test: float, seed: int, labels: str = SINGLE
) -> Dataset:
  """Return a data set whose name has a digest of its content.

  Args:
    given: a Dataset, or (inputs, labels): images (N, H, W, C) or (N, H, W), uint8 or floats in
      0..1, with one class number each; or a pytree of arrays with leading axis N, which is used as
      it is, with labels (N, ...).
    validation: fraction of the training examples of arrays that is held out; 0 for none.
    test: fraction of all examples of arrays that is held out. The choice does not depend on `seed`.
    seed: seed of the choice of validation examples.
    labels: "single", or "multi" for arrays of labels (N, C), a number in 0..1 for every class; the
      inputs are then used as they are.

  Raises:
    ConfigError: naming the array and the row, or as `validate_dataset`.
  """
  if isinstance(given, Dataset):
    data = validate_dataset(given)
  elif isinstance(given, tuple | list) and len(given) == 2:
    data = validate_dataset(_of_arrays(given[0], given[1], validation, test, seed, labels))
  else:
    raise ConfigError(
      f"data: expected a jaxkd.data.Dataset, (inputs, labels) or the name of a data set, got a "
      f"{type(given).__name__}"
    )
  return dataclasses.replace(data, name=f"{data.name}#{_digest(data)}")


def _of_arrays(
  inputs: Any, labels: Any, validation: float, test: float, seed: int, kind: str
) -> Dataset:
  """Return the data set of arrays, with examples held out."""
  if kind == MULTI:
    several = MultiLabelExamples(inputs, labels)
    return _held_out(several, several.labels.shape[1], validation, test, seed)
  numbers = np.asarray(labels)
  if numbers.ndim == 2 and numbers.shape[1] == 1:
    numbers = numbers[:, 0]
  if hasattr(inputs, "shape") and len(inputs.shape) in (3, 4) and numbers.ndim == 1:
    return from_arrays(inputs, numbers, validation=validation, test=test, seed=seed)
  examples = TreeExamples(inputs, numbers)
  if not len(examples):
    raise ConfigError("labels: there are none")
  wrong = np.flatnonzero((examples.labels < UNLABELLED).reshape(len(examples), -1).any(1))
  if wrong.size:
    raise ConfigError(f"labels: row {wrong[0]} has a number below -1: expected class numbers")
  return _held_out(examples, int(examples.labels.max()) + 1, validation, test, seed)


def _held_out(
  examples: TreeExamples, num_classes: int, validation: float, test: float, seed: int
) -> Dataset:
  """Return the data set of examples, with some of them held out."""
  train, tested = split_off(examples, test, seed=0)
  validated = None
  if validation:
    train, validated = split_off(train, validation, seed=seed)
  return Dataset("arrays", train, validated, tested, num_classes)


def _digest(data: Dataset) -> str:
  """Return a digest of the labels and masks, and of the inputs of a sample of each split."""
  digest = hashlib.sha256()
  for examples in (data.train, data.validation, data.test):
    if examples is None:
      continue
    digest.update(np.ascontiguousarray(examples.labels).tobytes())
    mask = getattr(examples, "mask", None)
    if mask is not None:
      digest.update(np.ascontiguousarray(mask).tobytes())
    rows = np.unique(np.linspace(0, len(examples) - 1, _SAMPLE).astype(int))
    for leaf in jax.tree.leaves(examples.fetch(rows)):
      digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:8]
