"""PyTorch state dicts as Flax variables of the models of this library."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jaxkd.errors import ConfigError
from jaxkd.models.torch.directory import read_directory
from jaxkd.models.torch.files import read_torch_file
from jaxkd.models.torch.layers import Transposed, in_layout, traced
from jaxkd.models.torch.names import Names, Resolver
from jaxkd.models.torch.parts import CHOICE, State, parts_of, state_dict, without_prefix
from jaxkd.shapes import InputShape, batched

Source = str | os.PathLike[str] | Mapping[str, Any]
Shape = tuple[int, ...]

_LISTED = 8  # names in an error message
_SHAPES = "of another shape or kind"


def from_torch(
  source: Source,
  model: nn.Module,
  *,
  image_shape: InputShape = (32, 32, 3),
  names: Names | None = None,
  part: str | None = None,
) -> dict[str, Any]:
  r"""Convert a PyTorch state dict to the Flax variables of a model.

  The names are those of the code that published the architecture (RepDistiller, also used by
  mdistiller and SimKD; torchvision; MSDNet-PyTorch; ONE), see the model's `torch_names`, or those
  that `names` gives. Convolutions OIHW become HWIO, linear layers are transposed, batch
  normalisation's weight becomes scale, and running_mean and running_var become mean and var.
  Neither PyTorch nor the code that wrote the file is needed, and no code in the file is run.

  Passed over: counters, on which no output depends (num_batches_tracked, n_averaged of averaged
  weights, total_ops and total_params of profilers), and entries that are no tensors. Removed where
  all names start with them, in any order: "module.", "model.", "_orig_mod.".

  Args:
    source: a file (.pth and similar, of any PyTorch version, or .safetensors), a directory of
      transformers (config.json, model.safetensors or its parts), or a mapping from names to arrays
      of numpy or jax or to PyTorch tensors. The weights may be an entry "model", "state_dict",
      "net" or "model_state_dict" of a checkpoint.
    model: the model that the weights are for, with the same number of classes.
    image_shape: (H, W, C) of the images; C determines the shape of the first layer.
    names: for modules of your own: {regular expression of a PyTorch module's whole name: path of
      the Flax module, its parts separated by / or .}; groups are inserted as in `re.sub`. Or a
      function from the name to the path or None. A PyTorch module's name is that of its entries
      without the last part ("layer1.conv" for layer1.conv.weight). An entry of no layer, such as a
      position embedding, is matched by its whole name. What a model's `torch_names` know is a
      valid path, too: {r"backbone\.(.*)": r"\1"} removes a prefix.
    part: which of several parts of the source: the key of an entry ("model_ema", or "model.student"
      for an entry of an entry), or the start of its names ("teacher" for teacher.conv1.weight).

  Returns:
    {"params": ..., "batch_stats": ...}: numpy arrays, copies with the dtype of the model's
    variables (float32).

  Raises:
    ConfigError: for a file that cannot be read (see jaxkd.models.torch.files), a model without
      `torch_names` if there are no `names`, no state dict or several, a part that does not exist,
      and weights of another architecture; the message lists the names that are unknown, missing, or
      of another shape.

  >>> import numpy as np
  >>> from jaxkd.models import create, from_torch
  >>> try:
  ...   from_torch({"conv1.weight": np.zeros((4, 1, 3, 3))}, create("resnet8_w4", num_classes=10))
  ... except ConfigError as error:
  ...   print(str(error)[:98])
  the given state dict: not the weights of this CifarResNet: 46 missing (batch_stats/stage1_0/bn1/me
  """
  torch_names = getattr(model, "torch_names", ())
  if not torch_names and names is None:
    raise ConfigError(
      f"from_torch: no PyTorch names are known for this {type(model).__name__}: pass names=..., "
      f"as for a module of your own; they are known for {', '.join(_classes())}"
    )
  where, content = _content(source, model)
  wanted, transposed, flattened = traced(model, batched(image_shape, (1,)))
  resolve = Resolver(wanted, torch_names, names)

  def matched(part: str | None) -> tuple[State, dict[tuple[str, ...], str], list[str]]:
    state = _own_state(state_dict(where, content, part), model, resolve)
    return state, *_matched(state, wanted, transposed, resolve)

  def fits(part: str) -> bool:
    # Its shapes may differ, as by another number of classes.
    return all(_SHAPES in problem for problem in matched(part)[2])

  state, taken, problems = matched(part)
  if problems:
    raise ConfigError(
      f"{where}: not the weights of this {type(model).__name__}: {'; '.join(problems)}"
      + (_positions(problems, image_shape) or ("" if part else _advice(content, fits)))
    )
  _check_order(where, flattened)
  return unflatten_dict(
    {
      path: np.array(
        in_layout(path, _numpy(state[taken[path]]), transposed).reshape(like.shape),
        like.dtype,
        order="C",
      )
      for path, like in wanted.items()
    }
  )


def classes_in(
  source: Source,
  create: Callable[[int], nn.Module],
  *,
  image_shape: InputShape = (32, 32, 3),
  names: Names | None = None,
  part: str | None = None,
) -> int | None:
  """Number of classes that a PyTorch state dict predicts; None if it cannot be determined.

  Args:
    source: as for `from_torch`.
    create: number of classes -> the model that the weights are for.
    image_shape: as for `from_torch`.
    names: as for `from_torch`.
    part: as for `from_torch`.

  Raises:
    ConfigError: as `from_torch`, for a source that cannot be read or holds no state dict.
  """
  model = create(2)
  where, content = _content(source, model)
  images = batched(image_shape, (1,))
  (few, transposed, _), (more, *_) = (traced(create(count), images) for count in (2, 3))
  # For each variable whose shape depends on the number of classes: the axis that does.
  axes = {
    path: axis
    for path, like in few.items()
    for axis, size in enumerate(like.shape)
    if (size, more[path].shape[axis]) == (2, 3)
  }
  resolve = Resolver(few, getattr(model, "torch_names", ()), names)
  state = _own_state(state_dict(where, content, part), model, resolve)
  found = set()
  for name, value in state.items():
    path = resolve(name, value.ndim)
    if path in axes:
      shape = _described(path, value, transposed)
      if isinstance(shape, tuple) and len(shape) == len(few[path].shape):
        found.add(shape[axes[path]])
  return found.pop() if len(found) == 1 else None


def _content(source: Source, model: nn.Module) -> tuple[str, Any]:
  if isinstance(source, Mapping):
    return "the given state dict", source
  path = Path(source)
  content = read_directory(path, model) if os.path.isdir(path) else read_torch_file(path)
  return str(source), content


def _own_state(state: State, model: nn.Module, resolve: Resolver) -> State:
  """The state dict with names without prefixes, as the model's `torch_state` rewrites it."""
  state = without_prefix(state, lambda name, value: bool(resolve(name, value.ndim)))
  if (rewrite := getattr(model, "torch_state", None)) is None:
    return state
  return rewrite({name: _numpy(value) for name, value in state.items()})


def _matched(
  state: State,
  wanted: Mapping[tuple[str, ...], Any],
  transposed: Transposed,
  resolve: Resolver,
) -> tuple[dict[tuple[str, ...], str], list[str]]:
  """The entry for each variable, and what does not match, in words."""
  taken: dict[tuple[str, ...], str] = {}
  unknown, twice, shapes = [], [], []
  for name, value in state.items():
    path = resolve(name, value.ndim)
    if not path:
      unknown.append(name)
    elif path in taken:
      twice.append(f"{taken[path]} and {name}")
    else:
      taken[path] = name
      found, expected = _described(path, value, transposed), wanted[path].shape
      if isinstance(found, str) or not _same(found, expected):
        shapes.append(f"{'/'.join(path)}: {found} from {name}, expected {expected}")
  problems = {
    "unknown": unknown,
    "for one variable": twice,
    "missing": ["/".join(path) for path in wanted if path not in taken],
    _SHAPES: shapes,
  }
  return taken, [_listed(what, names) for what, names in problems.items() if names]


def _check_order(where: str, flattened: Mapping[tuple[str, ...], Shape]) -> None:
  """Raise a ConfigError for a linear layer whose inputs are in another order than PyTorch's."""
  for path, shape in flattened.items():
    rank = len(shape)
    sizes = {2: ("L",), 3: ("H", "W")}.get(rank, ("D", "H", "W"))
    raise ConfigError(
      f"{where}: the input of {'/'.join(path)} is a map of {shape}, flattened as "
      f"({', '.join((*sizes, 'C'))}), and PyTorch flattens it as ({', '.join(('C', *sizes))}), so "
      "that the weights would be in another order: expected "
      f"jnp.transpose(x, {(0, rank, *range(1, rank))}).reshape(len(x), -1) in the module"
    )


def _positions(problems: list[str], image_shape: InputShape) -> str:
  """What to change if the positions are those of another size of images: the end of an error."""
  if not any("/pos_embed:" in problem for problem in problems):
    return ""
  return (
    f"; the positions belong to one size of images, and image_shape={image_shape}: pass that of "
    "the weights (teacher.image_size in a config), often (224, 224, 3)"
  )


def _advice(content: Any, fits: Callable[[str], bool]) -> str:
  """The parts of a source that the model takes, if the whole is not it: the end of an error."""
  fitting = [part for part in parts_of(content) if fits(part)]
  return f"; {CHOICE} takes a part that is: {', '.join(fitting)}" if fitting else ""


def _described(path: tuple[str, ...], value: Any, transposed: Transposed) -> Shape | str:
  """The shape of a tensor in Flax's layout; its dtype if that is no floating dtype."""
  # A placeholder for the tensor, which may be large and may be PyTorch's.
  placeholder = np.broadcast_to(np.float32(0), tuple(value.shape))
  kind = str(value.dtype)
  return in_layout(path, placeholder, transposed).shape if "float" in kind else kind


def _same(found: Shape, expected: Shape) -> bool:
  """Say if two shapes are equal but for axes of length 1 at the start, or at the end.

  A linear layer may be a 1x1 convolution, and a scale per channel may be (C, 1, 1).
  """
  short, long = sorted((found, expected), key=len)
  ones = (1,) * (len(long) - len(short))
  return long in (ones + short, short + ones)


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
