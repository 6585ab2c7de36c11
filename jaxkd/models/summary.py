"""The table of a model: stages with their shapes, parameters and multiply-adds."""

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
from jaxkd.shapes import InputShape, batched
from jaxkd.types import Array, Output


@dataclasses.dataclass(frozen=True)
class StageSummary:
  """One row of a Summary.

  Attributes:
    name: the stage; "classifier" for the layers after the last stage; "exit_0", ... or "branch_0",
      ... for a model with several outputs.
    shape: shape of the features, or of the classifier's logits, without the batch; None for an
      output without a pooled feature.
    parameters: number of parameters of the layers that the stage needs and no earlier row does.
    multiply_adds: multiply-adds of these layers for one image.
  """

  name: str
  shape: tuple[int, ...] | None
  parameters: int
  multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Summary:
  """The rows and totals of a model; `str` of it is a table.

  Attributes:
    rows: shallow to deep; empty for a model that returns logits only, such as an ensemble.
    parameters: number of parameters of the whole model, with those that no row needs.
    multiply_adds: multiply-adds of the whole model for one image.
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
  model: nn.Module, shape: InputShape, *, variables: Mapping[str, Any] | None = None
) -> Summary:
  """The stages of a model with their shapes, parameters and multiply-adds, and the totals.

  The model is traced once in evaluation mode; no array is computed and no program compiled. Each
  row counts what its features need beyond the earlier rows. This works for any linen module that
  returns an Output, also if it cannot be cut at its stages. Biases, and the scales and shifts of
  batch normalisation, are parameters; running statistics are not. `jaxkd.evaluate.multiply_adds`
  defines a multiply-add.

  A model with several exits has one row per block and its exit, shallowest first; a model with
  branches has one row per stage of the trunk, then one per branch. Multiply-adds are those of the
  logits: layers that are used in training only, such as the layer of a "hint", have parameters, but
  no multiply-adds.

  Args:
    model: `__call__(images, train) -> Output`, or a tuple of Outputs.
    shape: (H, W, C) of the images; a batch axis in front is ignored. Or the pytree of
      `jax.ShapeDtypeStruct`s of one example of other inputs.
    variables: the model's Flax variables, or their shapes; None takes the shapes of its `init`.

  Returns:
    The Summary.

  Raises:
    ConfigError: for a shape that is not that of an image or that the model rejects, or a model that
      does not return Outputs.

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
  images = batched(_input_shape(shape), (1,))
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
  """The arrays of a row: `costly` gives its multiply-adds, `held` its parameters."""

  name: str
  shape: tuple[int, ...] | None
  costly: list[Array]
  held: list[Array]


def _parts(model: nn.Module, variables: Mapping[str, Any], images: Array) -> list[_Part]:
  """The arrays of every row, shallow to deep."""
  if hasattr(model, "num_exits"):
    return _exits(model, variables, images)
  found = model.apply(variables, images, False)
  if isinstance(found, Output):
    # In the order of model.stages, since JAX transformations sort the keys of dictionaries.
    order = [stage for stage in getattr(model, "stages", ()) if stage in found.features]
    order += [stage for stage in found.features if stage not in order]
    parts = [_array_part(stage, found.features[stage]) for stage in order]
    return parts if found.logits is None else [*parts, _array_part("classifier", found.logits)]
  if not isinstance(found, tuple) or not all(isinstance(output, Output) for output in found):
    raise ConfigError(
      f"summary: a {type(model).__name__} returns a {type(found).__name__}, not an Output; "
      "jaxkd.models.tap makes it return one"
    )
  first, *others = (output.features for output in found)
  shared = [name for name in first if all(first[name] is other.get(name) for other in others)]
  branches = [_output_part(f"branch_{k}", output) for k, output in enumerate(found)]
  return [*(_array_part(name, first[name]) for name in shared if others), *branches]


def _exits(model: Any, variables: Mapping[str, Any], images: Array) -> list[_Part]:
  """One part per exit, with the carry of its block, as in `jaxkd.evaluate.exit_costs`."""
  parts = []
  carry: Any = images
  for block in range(model.num_exits):
    carry, output = model.apply(variables, carry, block, False, method="run_block")
    passed = jax.tree.leaves(carry) if block + 1 < model.num_exits else []
    parts.append(_output_part(f"exit_{block}", output, passed))
  return parts


def _array_part(name: str, array: Array) -> _Part:
  return _Part(name, array.shape[1:], [array], [array])


def _output_part(name: str, output: Output, passed: Sequence[Array] = ()) -> _Part:
  needed = [*passed, *jax.tree.leaves(output.logits)]
  shape = output.features["pooled"].shape[1:] if "pooled" in output.features else None
  return _Part(name, shape, needed, [*needed, *output.features.values()])


def _parameters(traced: ClosedJaxpr, results: set[int], sizes: Sequence[int]) -> int:
  """Number of parameters that the given results need."""
  _, used = _needed(traced, results)
  # The variables come first, then the leaves of the inputs, which are no parameters.
  own = used[: len(sizes)]
  return sum(size for size, is_used in zip(sizes, own, strict=True) if is_used)


def _cost(traced: ClosedJaxpr, results: set[int]) -> int:
  """Multiply-adds that the given results need."""
  jaxpr, used = _needed(traced, results)
  avals = [aval for aval, is_used in zip(traced.in_avals, used, strict=True) if is_used]
  return multiply_adds(jaxpr_as_fun(ClosedJaxpr(jaxpr, traced.consts)), *avals)


def _needed(traced: ClosedJaxpr, results: set[int]) -> tuple[Any, list[bool]]:
  jaxpr = traced.jaxpr
  return partial_eval.dce_jaxpr(jaxpr, [n in results for n in range(len(jaxpr.outvars))])


def _input_shape(shape: InputShape) -> InputShape:
  leaves = jax.tree.leaves(shape)
  if leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
    return shape
  sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
  if len(sizes) not in (3, 4) or not all(isinstance(n, int) and n > 0 for n in sizes[-3:]):
    raise ConfigError(f"shape={shape!r}: expected that of an image, (H, W, C)")
  return sizes[-3:]


def _size(leaf: Any) -> int:
  return math.prod(jnp.shape(leaf))
