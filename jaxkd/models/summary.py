"""What a model consists of: stages, their shapes, parameters and multiply-adds, as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval

from jaxkd.errors import ConfigError
from jaxkd.evaluate import multiply_adds
from jaxkd.types import Array, Output


@dataclasses.dataclass(frozen=True)
class StageSummary:
  """One row of a Summary.

  Attributes:
    name: the stage; "classifier" for what leads from the last one to the logits; "exit_0", ... or
      "branch_0", ... of a model with several outputs.
    shape: of the features, or of the classifier's logits, without the batch; None for an output
      without a pooled feature.
    parameters: of the layers that the stage needs and no row before it does.
    multiply_adds: of these layers, for one image.
  """

  name: str
  shape: tuple[int, ...] | None
  parameters: int
  multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Summary:
  """What `summary` returns; `str` of it is a table.

  Attributes:
    rows: shallow to deep. None for a model that returns logits alone, such as an ensemble.
    parameters: of the whole model; those that no row needs are counted here alone.
    multiply_adds: of the whole model, for one image.
  """

  rows: tuple[StageSummary, ...]
  parameters: int
  multiply_adds: int

  def __str__(self) -> str:
    cells = [("stage", "features", "parameters", "multiply-adds")]
    for row in self.rows:
      shape = " x ".join(str(size) for size in row.shape or ())
      cells.append((row.name, shape, f"{row.parameters:,}", f"{row.multiply_adds:,}"))
    cells.append(("total", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"))
    first, *others = (max(len(cell) for cell in column) for column in zip(*cells, strict=True))
    return "\n".join(
      "  ".join([name.ljust(first), *(c.rjust(w) for c, w in zip(rest, others, strict=True))])
      for name, *rest in cells
    )


def summary(
  model: nn.Module, shape: Sequence[int], *, variables: Mapping[str, Any] | None = None
) -> Summary:
  """The stages of a model with their shapes, parameters and multiply-adds, and both totals.

  Nothing is computed and nothing compiled: the model is traced once, in evaluation mode, and each
  row is what its features need beyond what the rows before it need. This holds for any linen
  module that returns an Output, whether or not it can be cut at its stages. The biases, and the
  scales and shifts of batch normalisation, are parameters; running statistics are not. For what
  counts as a multiply-add see `jaxkd.evaluate.multiply_adds`.

  Of a model with several exits there is one row for each block and its exit, shallowest first, of
  one with branches one for each branch, after those of the trunk's stages. Multiply-adds are those
  of the logits: what exists only to be compared in training, such as the layer behind a "hint", has
  parameters, but costs nothing.

  Args:
    model: `__call__(images, train) -> Output`, or a tuple of Outputs.
    shape: (H, W, C) of the images; a batch axis before them is ignored.
    variables: the model's Flax variables, or their shapes; None takes those that its `init` makes.

  Returns:
    The Summary.

  Raises:
    ConfigError: for a shape that is no image's, one that the model does not take, or a model that
      returns something else.

  >>> from jaxkd import models
  >>> print(summary(models.create("resnet8_w4", num_classes=10), (8, 8, 1)))
  stage         features  parameters  multiply-adds
  stem         8 x 8 x 4          44          2,304
  stage1       8 x 8 x 4         304         18,432
  stage2       4 x 4 x 8         944         14,336
  stage3      2 x 2 x 16       3,680         14,336
  pooled              16           0              0
  classifier          10         170            160
  total                        5,142         49,568
  """
  images = jax.ShapeDtypeStruct((1, *_image_shape(shape)), jnp.float32)
  if variables is None:
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
  labels: list[tuple[str, tuple[int, ...] | None]] = []

  def results(variables: Any, images: Any) -> list[tuple[list[Array], list[Array]]]:
    parts = _parts(model, variables, images)
    labels.extend((part.name, part.shape) for part in parts)
    return [(part.costly, part.held) for part in parts]

  traced, like = jax.make_jaxpr(results, return_shape=True)(variables, images)
  structure = jax.tree.structure(like)
  numbered = jax.tree.unflatten(structure, range(len(jax.tree.leaves(like))))
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  sizes = [_size(leaf) if path[0].key == "params" else 0 for path, leaf in leaves]
  rows = []
  costly: set[int] = set()
  held: set[int] = set()
  cost = parameters = 0
  for (name, features), (here_costly, here_held) in zip(labels, numbered, strict=True):
    costly, held = costly.union(here_costly), held.union(here_held)
    cost_before, parameters_before = cost, parameters
    cost, parameters = _cost(traced, costly), _parameters(traced, held, sizes)
    rows.append(StageSummary(name, features, parameters - parameters_before, cost - cost_before))
  alone = [row.name for row in rows] == ["classifier"]
  return Summary(() if alone else tuple(rows), sum(sizes), cost)


class _Part(NamedTuple):
  """What a row is about: its multiply-adds are those of `costly`, its parameters of `held`."""

  name: str
  shape: tuple[int, ...] | None
  costly: list[Array]
  held: list[Array]


def _parts(model: nn.Module, variables: Mapping[str, Any], images: Array) -> list[_Part]:
  """A row's results for every row, shallow to deep."""
  if hasattr(model, "num_exits"):
    return _exits(model, variables, images)
  found = model.apply(variables, images, False)
  if isinstance(found, Output):
    # A model's own order of its stages, since transformations sort dictionaries.
    order = [stage for stage in getattr(model, "stages", ()) if stage in found.features]
    order += [stage for stage in found.features if stage not in order]
    parts = [_single(stage, found.features[stage]) for stage in order]
    return parts if found.logits is None else [*parts, _single("classifier", found.logits)]
  if not isinstance(found, tuple) or not all(isinstance(output, Output) for output in found):
    raise ConfigError(
      f"summary: a {type(model).__name__} returns a {type(found).__name__}, not an Output; "
      "jaxkd.models.tap makes it return one"
    )
  first, *others = (output.features for output in found)
  shared = [name for name in first if all(first[name] is other.get(name) for other in others)]
  branches = [_several(f"branch_{k}", output) for k, output in enumerate(found)]
  return [*(_single(name, first[name]) for name in shared if others), *branches]


def _exits(model: Any, variables: Mapping[str, Any], images: Array) -> list[_Part]:
  """Of each exit, what the block hands on belongs to it, as in `jaxkd.evaluate.exit_costs`."""
  parts = []
  carry: Any = images
  for block in range(model.num_exits):
    carry, output = model.apply(variables, carry, block, False, method="run_block")
    passed = jax.tree.leaves(carry) if block + 1 < model.num_exits else []
    parts.append(_several(f"exit_{block}", output, passed))
  return parts


def _single(name: str, array: Array) -> _Part:
  return _Part(name, array.shape[1:], [array], [array])


def _several(name: str, output: Output, passed: Sequence[Array] = ()) -> _Part:
  needed = [*passed, *jax.tree.leaves(output.logits)]
  shape = output.features["pooled"].shape[1:] if "pooled" in output.features else None
  return _Part(name, shape, needed, [*needed, *output.features.values()])


def _parameters(traced: ClosedJaxpr, results: set[int], sizes: Sequence[int]) -> int:
  """How many parameters some of the results need."""
  _, used = _needed(traced, results)
  # The images, the last argument, are no parameter.
  return sum(size for size, is_used in zip([*sizes, 0], used, strict=True) if is_used)


def _cost(traced: ClosedJaxpr, results: set[int]) -> int:
  """The multiply-adds that some of the results need."""
  jaxpr, used = _needed(traced, results)
  avals = [aval for aval, is_used in zip(traced.in_avals, used, strict=True) if is_used]
  return multiply_adds(jaxpr_as_fun(ClosedJaxpr(jaxpr, traced.consts)), *avals)


def _needed(traced: ClosedJaxpr, results: set[int]) -> tuple[Any, list[bool]]:
  jaxpr = traced.jaxpr
  return partial_eval.dce_jaxpr(jaxpr, [n in results for n in range(len(jaxpr.outvars))])


def _image_shape(shape: Sequence[int]) -> tuple[int, ...]:
  sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
  if len(sizes) not in (3, 4) or not all(isinstance(n, int) and n > 0 for n in sizes[-3:]):
    raise ConfigError(f"shape={shape!r}: expected that of an image, (H, W, C)")
  return sizes[-3:]


def _size(leaf: Any) -> int:
  return math.prod(jnp.shape(leaf))
