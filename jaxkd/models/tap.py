"""Features of any linen module, taken by path, without editing it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core.scope import union_filters

from jaxkd.errors import unknown_name
from jaxkd.types import Array, Output

# What modules call their mode, and whether it says "train" or the opposite.
_MODE_ARGUMENTS = {
  "train": True,
  "training": True,
  "is_training": True,
  "deterministic": False,
  "use_running_average": False,
}
# A collection of our own, so that what the module itself sows is left as it is.
_TAPS = "jaxkd_taps"


def tap(
  module: nn.Module,
  features: Mapping[str, str],
  preactivations: Mapping[str, str] | None = None,
  *,
  mode: Callable[[bool], Mapping[str, Any]] | None = None,
  logits: Callable[[Any], Array] | None = None,
) -> Tapped:
  """Gives an existing linen module the interface `__call__(images, train) -> Output`.

  A path names a submodule as `module.init` does: "encoder/block_2" is what params["encoder"]
  ["block_2"] belongs to. The stage is what that submodule returns (the last time it is called);
  with ":input" appended, it is the submodule's first argument ("head:input" is what the
  classifier sees). Paths inside nn.remat work; those inside nn.scan or nn.vmap do not exist one
  by one.

  The variables are the module's own, name by name: `tap(module, ...).init` gives the values of
  `module.init`, and weights trained without the tap load as they are.

  Args:
    module: a linen module, called with images as its first argument.
    features: stage -> path of the post-activation feature, shallow to deep.
    preactivations: stage -> path of the same before the activation, where there is such a module.
    mode: train -> keyword arguments for the module, e.g. `lambda train: {"is_eval": not train}`.
      By default the module's signature decides: `train`, `training` and `is_training` get `train`,
      `deterministic` and `use_running_average` the opposite, and a module with none of them gets
      nothing. It is then up to the module: many take `mutable=["batch_stats"]` as the sign of
      training, others were built for one mode.
    logits: what the module returns -> logits (B, C); for modules that return more than logits.

  Raises:
    ConfigError: when called, for a path that the module does not have, with those it has.
    TypeError: when called, if a path does not lead to one array, or the module returns more than
      logits and `logits` does not say which part they are.
    ValueError: when called, for a path inside nn.scan or nn.vmap.

  >>> module = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
  >>> tapped = tap(module, {"hidden": "layers_2:input"}, {"hidden": "layers_0"})
  >>> images = jax.numpy.ones((2, 5))
  >>> output = tapped.apply(module.init(jax.random.key(0), images), images)
  >>> output.logits.shape, output.features["hidden"].shape
  ((2, 3), (2, 8))
  """
  return Tapped(module, dict(features), dict(preactivations or {}), mode, logits)


class Tapped(nn.Module):
  """What `tap` returns; see there."""

  module: nn.Module
  features: Mapping[str, str]
  preactivations: Mapping[str, str]
  mode: Callable[[bool], Mapping[str, Any]] | None = None
  logits: Callable[[Any], Array] | None = None

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features, in the order given."""
    return tuple(self.features)

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Output:
    """The module's logits, and the features and preactivations asked for."""
    wanted = {path: path for path in (*self.features.values(), *self.preactivations.values())}
    seen: list[str] = []

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
      result = call(*args, **kwargs)
      path = "/".join(context.module.path)
      if context.method_name == "__call__" and path:
        seen.append(path)
        # Sown, not kept in a Python variable: what lifted transforms trace must leave through
        # the variables.
        for name, value in ((path, result), (f"{path}:input", args[0] if args else None)):
          if name in wanted:
            context.module.sow(_TAPS, _leaf(name), value, reduce_fn=_last, init_fn=lambda: None)
      return result

    with nn.intercept_methods(record):
      result, taps = self._run(images, **self._mode_arguments(train))
    tapped = {path: _find(taps, path, seen) for path in wanted}
    logits = result if self.logits is None else self.logits(result)
    if not hasattr(logits, "shape"):
      kind = type(self.module).__name__
      raise TypeError(f"{kind} returns {_shapes(logits)}: say which part is logits, logits=...")
    return Output(
      logits=logits,
      features={stage: tapped[path] for stage, path in self.features.items()},
      preactivations={stage: tapped[path] for stage, path in self.preactivations.items()},
    )

  def encode(self, images: Array, train: bool = False, to_stage: str = "pooled") -> Output:
    """Features up to and including `to_stage`, without logits.

    The whole module runs all the same, since only its paths are known: under jit, what the
    features do not need is not computed, but its batch statistics move in training.

    Raises:
      ConfigError: for an unknown stage, and as `__call__`.
    """
    if to_stage not in self.features:
      raise unknown_name("stage", to_stage, self.features)
    output = self(images, train)
    kept = self.stages[: self.stages.index(to_stage) + 1]
    return Output(
      features={stage: output.features[stage] for stage in kept},
      preactivations={stage: x for stage, x in output.preactivations.items() if stage in kept},
    )

  def resume(self, *args: Any, **kwargs: Any) -> Output:
    """Not possible: a path says where to look, not how the module goes on from there.

    Raises:
      NotImplementedError: always.
    """
    raise NotImplementedError(
      f"a tapped {type(self.module).__name__} cannot resume from a stage: its later layers "
      "cannot be told from paths alone. Give it a resume(features, from_stage, train) method "
      "(see jaxkd.models.CifarResNet) to reuse its classifier"
    )

  def _run(self, images: Array, **arguments: Any) -> tuple[Any, Mapping[str, Any]]:
    """Applies the module to our own variables, so that their names are the module's names."""
    scope = self.scope
    assert scope is not None
    module = self.module.clone(parent=None)
    rngs = {name: rng.as_jax_rng() for name, rng in scope.rngs.items()}
    mutable = union_filters(scope.mutable, _TAPS)
    if self.is_initializing():
      result, changed = module.init_with_output(rngs, images, mutable=mutable, **arguments)
    else:
      result, changed = module.apply(
        self.variables, images, rngs=rngs, mutable=mutable, **arguments
      )
    changed = dict(changed)
    taps = changed.pop(_TAPS, {})
    for collection, values in changed.items():
      for name, value in values.items():
        self.put_variable(collection, name, value)
    return result, taps

  def _mode_arguments(self, train: bool) -> Mapping[str, Any]:
    if self.mode is not None:
      return self.mode(train)
    parameters = inspect.signature(type(self.module).__call__).parameters
    return {
      name: train == says_train
      for name, says_train in _MODE_ARGUMENTS.items()
      if name in parameters
    }


def _leaf(path: str) -> str:
  return "jaxkd_input" if path.endswith(":input") else "jaxkd_output"


def _last(_: Any, new: Any) -> Any:
  return new


def _find(taps: Mapping[str, Any], path: str, seen: list[str]) -> Array:
  submodule = path.removesuffix(":input")
  if submodule not in seen:
    raise unknown_name("path", path, set(seen))
  value: Any = taps
  for key in (*submodule.split("/"), _leaf(path)):
    if key not in value:
      raise ValueError(
        f"path {path!r} runs inside a lifted transform such as nn.scan, which has no such value "
        "one by one: tap what encloses it"
      )
    value = value[key]
  if not hasattr(value, "shape"):
    raise TypeError(f"path {path!r} must lead to one array, not to {_shapes(value)}")
  return value


def _shapes(value: Any) -> Any:
  return jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), value)
