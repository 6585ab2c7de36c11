"""Networks that a program gives to a run, in place of those that a config names.

A run refuses a work directory that holds the run of another config. A network has no name in a
config, so its section's `model` is the class and a digest, "Net#1f0c9a2b": of the architecture, and
of the weights of a teacher.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import unfreeze

from jaxkd import models
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError, one_line
from jaxkd.experiment import own_models
from jaxkd.experiment.stated_images import images_of_run, shown
from jaxkd.export import architectures
from jaxkd.methods import Teacher
from jaxkd.preprocessing import Converted, as_trained
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.shapes import batched
from jaxkd.types import Network

Trained = tuple[Teacher, Mapping[str, Any] | None]


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
    module, output = _with_output(where, module, functools.partial(_initial_shapes, where, data))
    for one in output if isinstance(output, tuple) else (output,):
      if one.logits.shape[-1] != data.num_classes:
        raise ConfigError(
          f"{where} returns {one.logits.shape[-1]} logits, and {data.name} has {data.num_classes} "
          "classes"
        )
    return module, output

  def teachers_for(self, data: Dataset) -> list[Trained]:
    """Return the teachers with their variables; none if the config names them.

    Raises:
      ConfigError: if one cannot take the inputs, or has several exits.
    """
    return [_teacher(network, data) for network in self.teachers]


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


def _with_output(
  where: str, module: nn.Module, trace: Callable[[nn.Module], Any]
) -> tuple[nn.Module, Any]:
  """Return a module `(inputs, train) -> Output`, and the shapes of its output.

  A module that returns logits alone, or whose mode has another name than `train`, is tapped.
  """
  if "train" not in inspect.signature(type(module).__call__).parameters:
    module = models.tap(module, {})
  return own_models.with_output(where, module, trace)


def _teacher(network: Network, data: Dataset) -> Trained:
  """Return a trained network as a teacher, with conversion of its images if they differ."""
  where = f"teacher {type(network.module).__name__}"
  images = images_of_run(data)
  if network.preprocessing is not None and images is None:
    raise ConfigError(f"{where} takes images, and the inputs of {data.name} are none")
  wanted = network.preprocessing or images
  shape = data.input_shape if wanted is None else wanted.image_shape
  variables = unfreeze(dict(network.variables))
  trace = functools.partial(_shapes, where, variables, shape)
  module, output = _with_output(where, network.module, trace)
  if isinstance(output, tuple):
    raise ConfigError(f"{where} has {len(output)} exits: a teacher needs to have one")
  model = as_trained(Network(module, variables, wanted), images)
  converted = model if isinstance(model, Converted) else None
  notes = [f"its images are converted to {shown(converted.wanted)}"] if converted else []
  if why := architectures.why_not(module):
    notes.append(f"it is not written as a bundle: {why}")
  name = name_of(network.module, variables)
  teacher = Teacher(module, output, name, where, converted, None)
  if teacher.num_classes != data.num_classes:
    notes.append(
      f"it predicts {teacher.num_classes} classes, and {data.name} has {data.num_classes}: it is "
      "not scored"
    )
  return dataclasses.replace(teacher, notes=tuple(notes)), variables


def _initial_shapes(where: str, data: Dataset, module: nn.Module) -> Any:
  """Return the shapes of a new module's output for two examples of a data set."""
  inputs = batched(data.input_shape, (2,))
  try:
    return jax.eval_shape(module.init_with_output, jax.random.key(0), inputs)[0]
  except Exception as error:  # the module's code can raise any type
    raise ConfigError(f"{where} cannot take {data.name}'s inputs: {one_line(error)}") from error


def _shapes(where: str, variables: Any, shape: Any, module: nn.Module) -> Any:
  """Return the shapes of a trained module's output for two examples."""
  run = functools.partial(module.apply, train=False)
  try:
    return jax.eval_shape(run, variables, batched(shape, (2,)))
  except Exception as error:  # the module's code can raise any type
    raise ConfigError(f"{where} with these variables: {one_line(error)}") from error
