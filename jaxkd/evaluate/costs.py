"""The cost of a prediction: multiply-adds, counted in the traced computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.jaxprs import multiply_adds_of
from jaxkd.shapes import batched


def multiply_adds(function: Callable[..., Any], *args: Any) -> int:
  """Count the multiply-accumulates of the convolutions and matrix products in a function.

  One per weight and output element, including those on padding. Biases, normalisation, activations
  and pooling do not count, as in the tables of the papers. The function is traced, not run;
  operations that no result depends on are left out, as when it is compiled. A loop of known length
  counts every iteration, a branch its most expensive side.

  Args:
    function: function of arrays or pytrees of them, such as a module's `apply`.
    *args: arrays or jax.ShapeDtypeStructs.

  Raises:
    ConfigError: if a loop of unknown length multiplies matrices.

  >>> import jax.numpy as jnp
  >>> multiply_adds(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 5)))
  30
  """
  return multiply_adds_of(jax.make_jaxpr(function)(*args).jaxpr)


def exit_costs(model: Any, variables: Any, image_shape: Sequence[int]) -> tuple[int, ...]:
  """Count the multiply-adds of one image up to each exit, shallowest first.

  An image that leaves at exit k has passed blocks 0..k and the classifiers of exits 0..k, whose
  confidences decide where it leaves. The last number is the cost of the whole multi-exit network,
  all classifiers included.

  Args:
    model: model with `num_exits` and `run_block`, see `jaxkd.evaluate.early_exit`.
    variables: its Flax variables, or their shapes.
    image_shape: (H, W, C).

  Returns:
    `num_exits` numbers in rising order.
  """
  carry: Any = batched(image_shape, (1,))
  costs = []
  for block in range(model.num_exits):

    def run(variables: Any, carry: Any, block: int = block) -> Any:
      carry, output = model.apply(variables, carry, block, False, method="run_block")
      return (carry if block + 1 < model.num_exits else None), output.logits

    costs.append(multiply_adds(run, variables, carry))
    carry, _ = jax.eval_shape(run, variables, carry)
  return tuple(int(cost) for cost in np.cumsum(costs))
