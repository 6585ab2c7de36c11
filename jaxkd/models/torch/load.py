"""PyTorch state dicts as Flax variables of the models of this library."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError
from jaxkd.models.staged import TorchNames
from jaxkd.models.torch.directory import read_directory
from jaxkd.models.torch.files import read_torch_file
from jaxkd.shapes import InputShape, batched

# Keys under which published checkpoints hold the weights, beside other entries.
_WRAPPERS = ("model", "state_dict", "net", "model_state_dict")
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
_LISTED = 8  # names in an error message
_HOW_TO_SELECT = (
  "pass from_torch one entry of the result of jaxkd.models.torch.files.read_torch_file"
)


def from_torch(
  source: str | os.PathLike[str] | Mapping[str, Any],
  model: nn.Module,
  *,
  image_shape: InputShape = (32, 32, 3),
) -> dict[str, Any]:
  """Convert a PyTorch state dict to the Flax variables of a model.

  The names are those of the code that published the architecture (RepDistiller, also used by
  mdistiller and SimKD; torchvision; MSDNet-PyTorch; ONE), see the model's `torch_names`.
  Convolutions OIHW become HWIO, linear layers are transposed, batch normalisation's weight becomes
  scale, and running_mean and running_var become mean and var. num_batches_tracked is dropped, since
  no output depends on it. Neither PyTorch nor the code that wrote the file is needed, and no code
  in the file is run.

  Args:
    source: a file (.pth and similar, of any PyTorch version, or .safetensors), a directory of
      transformers (config.json, model.safetensors or its parts), or a mapping from names to arrays
      of numpy or jax or to PyTorch tensors. The weights may be an entry "model",
      "state_dict", "net" or "model_state_dict" of a checkpoint, and all names may start with
      "module.", as those of a DataParallel do.
    model: the model that the weights are for, with the same number of classes.
    image_shape: (H, W, C) of the images; C determines the shape of the first layer.

  Returns:
    {"params": ..., "batch_stats": ...}: numpy arrays, copies with the dtype of the model's
    variables (float32).

  Raises:
    ConfigError: for a file that cannot be read (see jaxkd.models.torch.files), a model without
      `torch_names`, no state dict or several, and weights of another architecture; the message
      lists the names that are unknown, missing, or of another shape.

  >>> import numpy as np
  >>> from jaxkd.models import create, from_torch
  >>> try:
  ...   from_torch({"conv1.weight": np.zeros((4, 1, 3, 3))}, create("resnet8_w4", num_classes=10))
  ... except ConfigError as error:
  ...   print(str(error)[:98])
  the given state dict: not the weights of this CifarResNet: 46 missing (batch_stats/stage1_0/bn1/me
  """
  if not getattr(model, "torch_names", ()):
    raise ConfigError(
      f"from_torch: no PyTorch names are known for this {type(model).__name__}; they are for "
      f"{', '.join(_classes())}"
    )
  if isinstance(source, Mapping):
    where, state = "the given state dict", source
  else:
    where, state = str(source), _read(Path(source), model)
  state = _without_prefix(_state_dict(where, state))
  images = batched(image_shape, (1,))
  wanted = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images))

  taken: dict[tuple[str, ...], str] = {}
  unknown, twice, shapes = [], [], []
  for name, value in state.items():
    module, _, leaf = name.rpartition(".")
    if leaf == "num_batches_tracked":
      continue
    path = _variable(module_path(module, model.torch_names), leaf, value.ndim)
    if path not in wanted and (whole := module_path(name, model.torch_names)) is not None:
      path = ("params", *whole.split("/"))  # an entry that is no layer's, such as positions
    if path not in wanted:
      unknown.append(name)
    elif path in taken:
      twice.append(f"{taken[path]} and {name}")
    else:
      taken[path] = name
      if (found := _described(leaf, value)) != wanted[path].shape:
        shapes.append(f"{'/'.join(path)}: {found} from {name}, expected {wanted[path].shape}")
  problems = {
    "unknown": unknown,
    "for one variable": twice,
    "missing": ["/".join(path) for path in wanted if path not in taken],
    "of another shape or kind": shapes,
  }
  found_problems = [_listed(what, names) for what, names in problems.items() if names]
  if found_problems:
    raise ConfigError(
      f"{where}: not the weights of this {type(model).__name__}: {'; '.join(found_problems)}"
      + _advice(model, shapes, image_shape)
    )
  return unflatten_dict(
    {
      path: np.array(_layout(taken[path], _numpy(state[taken[path]])), like.dtype, order="C")
      for path, like in wanted.items()
    }
  )


def classes_in(
  source: str | os.PathLike[str] | Mapping[str, Any],
  create: Callable[[int], nn.Module],
  *,
  image_shape: InputShape = (32, 32, 3),
) -> int | None:
  """Number of classes that a PyTorch state dict predicts; None if it cannot be determined.

  Args:
    source: as for `from_torch`.
    create: number of classes -> the model that the weights are for.
    image_shape: as for `from_torch`.

  Raises:
    ConfigError: as `from_torch`, for a source that cannot be read or holds no state dict.
  """
  state = source if isinstance(source, Mapping) else _read(Path(source), create(2))
  state = _without_prefix(_state_dict(str(source), state))
  images = batched(image_shape, (1,))
  few, more = (
    flatten_dict(jax.eval_shape(create(count).init, jax.random.key(0), images)) for count in (2, 3)
  )
  # For each variable whose shape depends on the number of classes: the axis that does.
  axes = {
    path: axis
    for path, like in few.items()
    for axis, size in enumerate(like.shape)
    if (size, more[path].shape[axis]) == (2, 3)
  }
  found = set()
  for name, value in state.items():
    module, _, leaf = name.rpartition(".")
    path = _variable(module_path(module, create(2).torch_names), leaf, value.ndim)
    shape = _described(leaf, value)
    if path in axes and isinstance(shape, tuple) and len(shape) == len(few[path].shape):
      found.add(shape[axes[path]])
  return found.pop() if len(found) == 1 else None


def module_path(name: str, torch_names: TorchNames) -> str | None:
  r"""The path of the Flax module for the name of a PyTorch module; None if no pattern matches.

  Args:
    name: name of the PyTorch module: a key of the state dict without its last part.
    torch_names: a model's patterns, see StagedModel; the first one that matches the whole name
      counts.

  >>> module_path("layer1.0.conv2", ((r"layer(\d)\.(\d+)\.conv(\d)", r"stage\1_\2/conv\3"),))
  'stage1_0/conv2'
  """
  for pattern, path in torch_names:
    if match := re.fullmatch(pattern, name):
      return match.expand(path) if isinstance(path, str) else path(match)
  return None


def prefix_paths(part: str, torch_names: TorchNames) -> TorchNames:
  """The same patterns for a network that is the submodule `part` of a larger one."""

  def nested(path: str | Callable[[Any], str]) -> Callable[[Any], str]:
    def nested_path(match: re.Match[str]) -> str:
      return f"{part}/{match.expand(path) if isinstance(path, str) else path(match)}"

    return nested_path

  return tuple((pattern, nested(path)) for pattern, path in torch_names)


def _advice(model: nn.Module, shapes: list[str], image_shape: tuple[int, int, int]) -> str:
  """What to change if the positions are those of another size of images."""
  if not any("/pos_embed:" in shape for shape in shapes):
    return ""
  return (
    f"; the positions belong to one size of images, and image_shape={image_shape}: pass that of "
    "the weights (teacher.image_size in a config), often (224, 224, 3)"
  )


def _read(path: Path, model: nn.Module) -> Any:
  return read_directory(path, model) if os.path.isdir(path) else read_torch_file(path)


def _state_dict(where: str, value: Any) -> Mapping[str, Any]:
  """The mapping of names to tensors: `value` or one of its entries."""
  if not isinstance(value, Mapping):
    raise ConfigError(f"{where}: holds a {type(value).__name__}, not a mapping of names to tensors")
  wrapped = [key for key in _WRAPPERS if _is_state_dict(value.get(key))]
  if len(wrapped) > 1:
    raise ConfigError(f"{where}: several state dicts, {', '.join(wrapped)}: {_HOW_TO_SELECT}")
  if wrapped:
    return value[wrapped[0]]
  if not _is_state_dict(value):
    keys = ", ".join(repr(key) for key in list(value)[:_LISTED]) or "nothing"
    raise ConfigError(
      f"{where}: no mapping of names to tensors, by itself or as {', '.join(_WRAPPERS)}; it has "
      f"{keys}: {_HOW_TO_SELECT}"
    )
  return value


def _is_state_dict(value: Any) -> bool:
  return (
    isinstance(value, Mapping)
    and bool(value)
    and all(isinstance(key, str) and _is_tensor(item) for key, item in value.items())
  )


def _is_tensor(value: Any) -> bool:
  return hasattr(value, "ndim") and (hasattr(value, "detach") or hasattr(value, "__array__"))


def _without_prefix(state: Mapping[str, Any]) -> Mapping[str, Any]:
  """Remove the "module." with which all names of a DataParallel start."""
  if all(name.startswith("module.") for name in state):
    return {name.removeprefix("module."): value for name, value in state.items()}
  return state


def _variable(module: str | None, leaf: str, ndim: int) -> tuple[str, ...]:
  """The path of the Flax variable for a leaf of a PyTorch module; () if the module is unknown."""
  if module is None:
    return ()
  if leaf in _STATISTICS:
    return ("batch_stats", *module.split("/"), _STATISTICS[leaf])
  name = {"weight": "kernel" if ndim > 1 else "scale"}.get(leaf, leaf)
  return ("params", *module.split("/"), name)


def _described(leaf: str, value: Any) -> tuple[int, ...] | str:
  """The shape of a tensor in Flax's layout; its dtype if that is no floating dtype."""
  # A placeholder for the tensor, which may be large and may be PyTorch's.
  placeholder = np.broadcast_to(np.float32(0), tuple(value.shape))
  kind = str(value.dtype)
  return _layout(leaf, placeholder).shape if "float" in kind else kind


def _layout(name: str, value: np.ndarray) -> np.ndarray:
  """PyTorch's (outputs, inputs, ...) as Flax's (..., inputs, outputs)."""
  if name.rpartition(".")[2] != "weight" or value.ndim < 2:
    return value
  return np.moveaxis(value, (1, 0), (-2, -1))


def _numpy(value: Any) -> np.ndarray:
  # numpy has no bfloat16, so PyTorch tensors are widened to float32.
  return value.detach().cpu().float().numpy() if hasattr(value, "detach") else np.asarray(value)


def _listed(what: str, names: list[str]) -> str:
  rest = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
  return f"{len(names)} {what} ({', '.join(names[:_LISTED])}{rest})"


def _classes() -> Iterable[str]:
  """The public model classes that have `torch_names`."""
  from jaxkd import models  # here, because jaxkd.models imports this module

  return (name for name in models.__all__ if getattr(getattr(models, name), "torch_names", ()))
