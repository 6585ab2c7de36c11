"""The FLOPs of our compiled training step over the fewest that could do its work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn
from jax.interpreters import partial_eval

from benchmarks import pairs
from benchmarks.pairs import PAIRS, Pair, Stepper
from jaxkd import models
from jaxkd.evaluate import multiply_adds
from jaxkd.jaxprs import inner_jaxprs
from jaxkd.runtime import mapping


def measure(names: Sequence[str] = tuple(PAIRS)) -> dict[str, Any]:
  """Return pair -> `cost_analysis()["flops"]` of the step compiled for one device, over the fewest.

  "ratio" is to the usual analytic count: twice `jaxkd.evaluate.multiply_adds` of teacher + 3
  students. "over_strict_minimum" is to `minimum`, which also leaves out products with padding and
  the gradient of the images; "products" are the traced step's convolutions and matrix products
  alone, over the same: above 1 something would be multiplied twice. The rest is normalisation,
  activations, the loss and the update.
  """
  return {name: _compare(PAIRS[name]) for name in names}


def minimum(pair: Pair) -> int:
  """Return the fewest FLOPs of a training step on one image.

  Two for every multiply-add of the convolutions and matrix products: of the teacher once, of the
  student three times (forward, the weights' gradient, the inputs' gradient), but of its first layer
  twice, since the gradient of the images is not needed. Products with the zeros of a padding are
  left out, as in XLA's count.
  """
  teacher, student = (sum(layers(pair, name)) for name in (pair.teacher, pair.student))
  first, *_ = layers(pair, pair.student)
  return 2 * (teacher + 3 * student - first)


def layers(pair: Pair, name: str) -> list[int]:
  """Return the multiply-adds of each layer of a network on one image, in order."""
  return [products_of(equation) for equation in equations(*_forward(pair, name))]


def equations(function: Callable[..., Any], *args: Any) -> Iterator[JaxprEqn]:
  """Return the convolutions and matrix products that a function's results need."""
  traced = jax.make_jaxpr(function)(*args).jaxpr
  needed, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
  yield from _inside(needed)


def products_of(equation: JaxprEqn) -> int:
  """Return the multiply-adds of a product in which neither factor is padding."""
  left, right = (variable.aval for variable in equation.invars[:2])
  result, params = equation.outvars[0].aval, equation.params
  if equation.primitive.name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    return result.size * math.prod(left.shape[axis] for axis in contracted)
  numbers = params["dimension_numbers"]
  _, channels, *kernel_axes = numbers.rhs_spec
  _, _, *image_axes = numbers.lhs_spec
  _, _, *result_axes = numbers.out_spec
  found = right.shape[channels] * math.prod(result.shape[axis] for axis in numbers.out_spec[:2])
  for place, axis in enumerate(image_axes):
    found *= _taps(
      left.shape[axis],
      right.shape[kernel_axes[place]],
      result.shape[result_axes[place]],
      stride=params["window_strides"][place],
      before=params["padding"][place][0],
      holes=params["lhs_dilation"][place],
      spread=params["rhs_dilation"][place],
    )
  return found


def _taps(
  size: int, kernel: int, results: int, *, stride: int, before: int, holes: int, spread: int
) -> int:
  """Return the number of (output, kernel position) pairs that meet a pixel, along one axis."""
  places = (o * stride + k * spread - before for o in range(results) for k in range(kernel))
  return sum(place >= 0 and place % holes == 0 and place // holes < size for place in places)


def _inside(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
      yield equation
    for inner in inner_jaxprs(equation):
      yield from _inside(inner)


def _forward(pair: Pair, name: str) -> tuple[Callable[..., Any], Any, Any]:
  """Return a network's prediction of one image, and its arguments."""
  network = models.create(name, num_classes=pairs.CLASSES)
  images = jax.ShapeDtypeStruct((1, *pair.image_shape), jnp.float32)
  variables = jax.eval_shape(network.init, jax.random.key(0), images)
  return lambda variables, images: network.apply(variables, images).logits, variables, images


def _compare(pair: Pair) -> dict[str, Any]:
  least = minimum(pair) * pair.batch_size
  teacher, student = (multiply_adds(*_forward(pair, n)) for n in (pair.teacher, pair.student))
  usual = 2 * (teacher + 3 * student) * pair.batch_size

  batch = pairs.random_batch(pair.image_shape, pair.batch_size)
  one = jax.local_devices()[:1]
  stepper = Stepper(pairs.distilling(pair), batch, one, untrained=("teacher",))
  mapped = jax.pmap(
    stepper.function,
    axis_name=mapping.AXIS_NAME,
    in_axes=(None, 0),
    out_axes=None,
    devices=one,
    donate_argnums=0,
  )
  lowered = mapped.lower(*stepper.arguments)
  # XLA counts after its own passes; the optimisation level of LLVM does not change the count.
  compiled = lowered.compile({"xla_backend_optimization_level": 0})
  counted = compiled.cost_analysis()["flops"]
  on_one = jax.vmap(stepper.function, (None, 0), axis_name=mapping.AXIS_NAME)
  products = sum(products_of(equation) for equation in equations(on_one, *stepper.arguments))
  return {
    "ratio": round(counted / usual, 4),
    "over_strict_minimum": round(counted / least, 4),
    "products": round(2 * products / least, 4),
    "counted_gflop": round(counted / 1e9, 5),
    "usual_gflop": round(usual / 1e9, 5),
    "minimum_gflop": round(least / 1e9, 5),
  }
