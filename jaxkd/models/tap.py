"""Features of any linen module by submodule path, without changes to the module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core.scope import union_filters

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.types import Array, Output

# Argument names for the mode -> whether the argument means "train" or its opposite.
_MODE_ARGUMENTS = {
  "train": True,
  "training": True,
  "is_training": True,
  "deterministic": False,
  "use_running_average": False,
}


class CannotResume(NotImplementedError, ConfigError):
  """A model cannot continue from a stage. The message, one line."""


# A separate collection, so that the values that the module itself sows do not change.
_TAPS = "jaxkd_taps"


def tap(
  module: nn.Module,
  features: Mapping[str, str],
  preactivations: Mapping[str, str] | None = None,
  *,
  mode: Callable[[bool], Mapping[str, Any]] | None = None,
  logits: Callable[[Any], Array] | None = None,
) -> Any:
  """Wrap an existing linen module as `__call__(images, train) -> Output`.

  A path names a submodule as in the variables: "encoder/block_2" is the submodule with the
  parameters params["encoder"]["block_2"]. The feature is the submodule's return value (of its last
  call); with ":input" appended, it is the submodule's first argument ("head:input" is the input of
  the classifier). Paths inside nn.remat work; paths inside nn.scan or nn.vmap have no single value.

  The variables have the names of the module's own: `tap(module, ...).init` returns the values of
  `module.init`, and weights trained without the tap load unchanged.

  Args:
    module: a linen module, called with images as its first argument. Of one that returns an
      Output, the logits stay, and its features and preactivations are replaced if any are given.
    features: stage -> path of the post-activation feature, shallow to deep. A module of `from_nnx`
      takes the paths of the NNX model.
    preactivations: stage -> path of the same before the activation, if there is such a submodule.
    mode: train -> keyword arguments for the module, e.g. `lambda train: {"is_eval": not train}`.
      By default the module's signature decides: `train`, `training` and `is_training` get `train`,
      `deterministic` and `use_running_average` the opposite, and a module with none of them gets
      no argument; some modules then detect training by `mutable=["batch_stats"]`, others have one
      mode only.
    logits: return value of the module -> logits (B, C); for modules that return more than logits.

  Raises:
    ConfigError: at the first call, for an unknown path; the message lists the known paths.
    TypeError: at the first call, if a path does not lead to one array, or the module returns more
      than logits and `logits` is None.
    ValueError: at the first call, for a path inside nn.scan or nn.vmap.

  >>> module = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
  >>> tapped = tap(module, {"hidden": "layers_2:input"}, {"hidden": "layers_0"})
  >>> images = jax.numpy.ones((2, 5))
  >>> output = tapped.apply(module.init(jax.random.key(0), images), images)
  >>> output.logits.shape, output.features["hidden"].shape
  ((2, 3), (2, 8))
  """
  # A module of `from_nnx`, whose submodules linen does not see, records them itself.
  if hasattr(module, "with_taps"):
    return module.with_taps(features, preactivations or {}, logits)
  return Tapped(module, dict(features), dict(preactivations or {}), mode, logits)


class Tapped(nn.Module):
  """A linen module with named features; created by `tap`."""

  module: nn.Module
  features: Mapping[str, str]
  preactivations: Mapping[str, str]
  mode: Callable[[bool], Mapping[str, Any]] | None = None
  logits: Callable[[Any], Array] | None = None

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features in the order given; the module's own if none are given."""
    if self.features or self.preactivations:
      return tuple(self.features)
    return tuple(getattr(self.module, "stages", ()))

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Output:
    """The module's logits, and the features and preactivations at the given paths."""
    wanted = {path: path for path in (*self.features.values(), *self.preactivations.values())}
    seen: list[str] = []

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
      result = call(*args, **kwargs)
      path = "/".join(context.module.path)
      if context.method_name == "__call__" and path:
        seen.append(path)
        # Sown, not stored in a Python variable: values traced inside a lifted transform can leave
        # it through variables only.
        for name, value in ((path, result), (f"{path}:input", args[0] if args else None)):
          if name in wanted:
            context.module.sow(_TAPS, _leaf(name), value, reduce_fn=_last, init_fn=lambda: None)
      return result

    with nn.intercept_methods(record):
      result, taps = self._run(images, **self._mode_arguments(train))
    tapped = {path: _find(taps, path, seen) for path in wanted}
    kind = type(self.module).__name__
    return output_of(kind, result, self.logits, self.features, self.preactivations, tapped)

  def encode(self, images: Array, train: bool = False, to_stage: str = "pooled") -> Output:
    """Features up to and including `to_stage`, without logits.

    The whole module is called, since only its paths are known. Under jit, values that the features
    do not need are not computed, but in training all batch statistics are updated.

    Raises:
      ConfigError: for an unknown stage, and as `__call__`.
    """
    stages = self.stages
    if to_stage not in stages:
      raise unknown_name("stage", to_stage, stages)
    output = self(images, train)
    kept = stages[: stages.index(to_stage) + 1]
    return Output(
      features={stage: output.features[stage] for stage in kept},
      preactivations={stage: x for stage, x in output.preactivations.items() if stage in kept},
    )

  def resume(self, *args: Any, **kwargs: Any) -> Output:
    """Not supported: paths do not determine how the module continues after a stage.

    Raises:
      NotImplementedError: always, as a CannotResume, which is a ConfigError too.
    """
    raise CannotResume(
      f"a tapped {type(self.module).__name__} cannot resume from a stage: paths do not determine "
      "its later layers. Give the module a resume(features, from_stage, train) method "
      "(see jaxkd.models.CifarResNet) to reuse its classifier"
    )

  def _run(self, images: Array, **arguments: Any) -> tuple[Any, Mapping[str, Any]]:
    """Apply the module to the variables of this scope, so that they have the module's names."""
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
    return mode_arguments(type(self.module).__call__, train)


def mode_arguments(call: Callable[..., Any], train: bool) -> dict[str, bool]:
  """The arguments that set the mode of a module, of those that its `__call__` has."""
  parameters = inspect.signature(call).parameters
  return {
    name: train == means_train
    for name, means_train in _MODE_ARGUMENTS.items()
    if name in parameters
  }


def output_of(
  kind: str,
  result: Any,
  logits_of: Callable[[Any], Array] | None,
  features: Mapping[str, str],
  preactivations: Mapping[str, str],
  values: Mapping[str, Any],
) -> Output:
  """The Output of a module: its logits, and the arrays at the paths of its stages.

  Args:
    kind: the module's class, for errors.
    result: what it returned: logits, an Output, or anything that `logits_of` takes.
    logits_of: selects the logits of the result; None takes the result.
    features: stage -> path; without any path, the features of a returned Output.
    preactivations: likewise.
    values: path -> array.

  Raises:
    TypeError: if the result is neither an array nor an Output and `logits_of` is None.
  """
  logits = result if logits_of is None else logits_of(result)
  if isinstance(logits, Output):
    if not features and not preactivations:
      return logits
    logits = logits.logits
  if not hasattr(logits, "shape"):
    raise TypeError(f"{kind} returns {_shapes(logits)}: select the logits with logits=...")
  return Output(
    logits=logits,
    features={stage: values[path] for stage, path in features.items()},
    preactivations={stage: values[path] for stage, path in preactivations.items()},
  )


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
        f"path {path!r} runs inside a lifted transform such as nn.scan, where it has no single "
        "value: tap the enclosing module"
      )
    value = value[key]
  if not hasattr(value, "shape"):
    raise TypeError(f"path {path!r} must lead to one array, not to {_shapes(value)}")
  return value


def _shapes(value: Any) -> Any:
  return jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), value)
