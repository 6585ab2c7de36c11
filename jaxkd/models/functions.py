"""Functions as frozen teachers: a function of images as a module with given variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.types import Network, Output, Preprocessing


def from_function(
  function: Callable[..., Any],
  variables: Any = None,
  *,
  preprocessing: Preprocessing | None = None,
  name: str = "",
) -> Network:
  """Return a trained function of images as a Network, a frozen teacher.

  The function is called in evaluation mode only, outside the differentiated function. A model of
  equinox, Haiku or any other library that jax traces is such a function.

  Args:
    function: images -> logits (B, C) or Output; with `variables`, (variables, images) -> the same.
    variables: any pytree of arrays, such as Haiku's parameters or the arrays of an equinox model
      (`eqx.partition(model, eqx.is_array)`). Arrays that the function closes over instead are
      constants in every compiled program.
    preprocessing: the images that it was trained on; None takes the run's.
    name: its name in errors; by default the function's.

  Returns:
    A Network: `network.module` for `methods.offline`, `network.variables` for `given`.

  Raises:
    ConfigError: for a leaf of `variables` that is no array; when traced, if the result is neither
      logits nor an Output, or has another batch size than the images; if it is to learn.

  >>> network = from_function(lambda w, x: x.reshape(len(x), -1) @ w, jnp.ones((4, 3)), name="sum")
  >>> network.module.apply(network.variables, jnp.ones((2, 2, 2, 1))).logits.shape
  (2, 3)
  """
  called = name or getattr(function, "__name__", type(function).__name__)
  if not callable(function):
    raise ConfigError(f"from_function: {function!r} is not callable")
  given = _Given(called, variables)
  module = FromFunction(function, given, called)
  return Network(module, {"params": dict(given.arrays)}, preprocessing)


class _Given:
  """The variables of a function, by name; compared by identity, as they are no value.

  Attributes:
    arrays: name -> array; the name is the path of the leaf, such as "layers.0.weight".
  """

  def __init__(self, called: str, variables: Any) -> None:
    self.some = variables is not None
    leaves, self._structure = jax.tree_util.tree_flatten_with_path(variables)
    self.arrays: dict[str, Any] = {}
    for path, leaf in leaves:
      name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
      if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int | bool):
        raise ConfigError(
          f"from_function: {called}: variables: {name} is a {type(leaf).__name__}, expected "
          "arrays alone (of an equinox model: eqx.partition(model, eqx.is_array))"
        )
      if name in self.arrays:
        raise ConfigError(f"from_function: {called}: variables: two leaves are called {name!r}")
      self.arrays[name] = leaf if hasattr(leaf, "shape") else np.asarray(leaf)

  def tree(self, values: Any) -> Any:
    """Return the values as the pytree that was given."""
    return jax.tree_util.tree_unflatten(self._structure, [values[name] for name in self.arrays])


class FromFunction(nn.Module):
  """A function as a module in which nothing learns; created by `from_function`."""

  function: Callable[..., Any]
  given: _Given
  called: str

  @nn.compact
  def __call__(self, images: Any, train: bool = False) -> Output:
    """The function's Output."""
    if train:
      raise ConfigError(
        f"{self.called} is a frozen function (jaxkd.models.from_function), in which nothing "
        "learns: it can be a teacher, not a student"
      )
    arrays = self.given.arrays
    # The values themselves, whatever the key: there is nothing to draw.
    values = {n: self.param(n, lambda _, x=value: jnp.asarray(x)) for n, value in arrays.items()}
    arguments = (self.given.tree(values), images) if self.given.some else (images,)
    result = self.function(*arguments)
    output = result if isinstance(result, Output) else Output(logits=result)
    self._check(result, output, jax.tree.leaves(images)[0].shape[0])
    return output

  def _check(self, result: Any, output: Output, examples: int) -> None:
    """Raise a ConfigError for a result that is no logits, or has another batch size."""
    logits: Any = output.logits
    if not hasattr(logits, "shape"):
      shapes = jax.tree.map(lambda x: getattr(x, "shape", x), result)
      raise ConfigError(f"{self.called} returns {shapes}: expected logits (B, C) or an Output")
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
      raise ConfigError(
        f"{self.called} returns {logits.dtype} {logits.shape}: expected float logits (B, C)"
      )
    for name, array in {"logits": logits, **output.features, **output.preactivations}.items():
      if array.shape[:1] != (examples,):
        raise ConfigError(
          f"{self.called} returns {name} {array.shape} for {examples} images: expected {examples} "
          "along the first axis"
        )
