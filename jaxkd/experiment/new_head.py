"""Fine-tuning of a teacher that comes trained, and a new classifier for other classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.data import Dataset
from jaxkd.errors import ConfigError
from jaxkd.methods import Teacher
from jaxkd.networks import key_for
from jaxkd.shapes import batched

Path = tuple[str, ...]


def fine_tuned(
  teacher: Teacher,
  variables: Mapping[str, Any] | None,
  settings: Any,
  data: Dataset,
  options: Mapping[str, Any],
) -> tuple[Teacher, Mapping[str, Any] | None]:
  """Return a teacher and the variables from which it is fine-tuned, if the config says so.

  With `teacher.new_head`, the layers whose shapes depend on the number of classes are drawn anew,
  for the classes of the data set, whatever their number was; the others keep their weights.

  Args:
    teacher: a teacher that comes trained.
    variables: its variables.
    settings: a config.
    data: data set of the run.
    options: fields of every trained module, as for `networks.create`.

  Raises:
    ConfigError: naming the teacher's field, if it has other classes and no new classifier, or is no
      module that can be made for another number of classes.
  """
  section = settings.teacher
  if not section.finetune_epochs or variables is None:
    return teacher, variables
  fields = {name: value for name, value in options.items() if _has_field(teacher.module, name)}
  module, notes = teacher.module.clone(**fields), list(teacher.notes)
  if not section.new_head:
    if teacher.num_classes != data.num_classes:
      raise ConfigError(
        f"teacher.new_head=False: expected True, as {teacher.field} predicts "
        f"{teacher.num_classes} classes, {data.name!r} has {data.num_classes}, and "
        f"teacher.finetune_epochs={section.finetune_epochs}"
      )
  else:
    module, variables = _with_new_head(teacher, module, variables, settings.seed, data)
    # A line that says that it cannot be scored is no longer true.
    notes = [note for note in notes if not note.startswith("it predicts ")]
    notes.append(f"its classifier is new, for {data.num_classes} classes")
  notes.append(f"it is fine-tuned for {section.finetune_epochs} epochs")
  inputs = _inputs(teacher, data, 2)
  output = jax.eval_shape(functools.partial(module.apply, train=False), variables, inputs)
  converted = teacher.converted and dataclasses.replace(teacher.converted, module=module)
  return dataclasses.replace(
    teacher, module=module, output=output, converted=converted, accuracy=None, notes=tuple(notes)
  ), variables


def _with_new_head(
  teacher: Teacher, module: nn.Module, variables: Mapping[str, Any], seed: int, data: Dataset
) -> tuple[nn.Module, Mapping[str, Any]]:
  """Return the module for the data's classes, and its variables with a classifier drawn anew."""
  if not _has_field(module, "num_classes"):
    raise ConfigError(
      f"teacher.new_head=True: expected False for {teacher.field}, as {type(module).__name__} has "
      "no field num_classes: a new classifier needs a linen module that is made for a number of "
      "classes"
    )
  count = data.num_classes
  inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _inputs(teacher, data, 1))

  def drawn(key: Any, classes: int) -> dict[Path, Any]:
    keys = {"params": key, "dropout": key}
    return flatten_dict(module.clone(num_classes=classes).init(keys, inputs, train=False))

  key = key_for(jax.random.key(seed), teacher.field)
  few, more = (jax.eval_shape(functools.partial(drawn, classes=n), key) for n in (count, count + 1))
  # Modules with a variable that depends on the number of classes; all of their variables are new.
  heads = {path[:-1] for path in few if few[path].shape != more[path].shape}
  head = [path for path in few if path[:-1] in heads]
  kept = {path: value for path, value in flatten_dict(dict(variables)).items() if path not in head}
  if not head or {*head, *kept} != set(few):
    raise ConfigError(
      f"teacher.new_head=True: expected False for {teacher.field}, as no layer of "
      f"{type(module).__name__} depends on its field num_classes alone"
    )
  new = jax.device_get(jax.jit(lambda key: {path: drawn(key, count)[path] for path in head})(key))
  return module.clone(num_classes=count), unflatten_dict({**kept, **new})


def _has_field(module: Any, name: str) -> bool:
  return name in getattr(type(module), "__dataclass_fields__", {})


def _inputs(teacher: Teacher, data: Dataset, count: int) -> Any:
  """Return the shapes of this number of inputs, as the teacher sees them."""
  shape = teacher.converted.wanted.image_shape if teacher.converted else data.input_shape
  return batched(shape, (count,))
