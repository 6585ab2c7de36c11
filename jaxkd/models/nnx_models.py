"""NNX models as linen modules, and back: their variables, random streams, modes and features.

Collections have the names that flax's bridge (`flax.nnx.bridge`) gives them: "params",
"batch_stats", and so on. The bridge's `ToLinen` draws the whole model again in every call, keeps
the integer keys of lists, which checkpoints and files of weights do not have, and knows no mode of
training; so the conversion to linen is here, and `to_nnx` of linen modules is the bridge's `ToNNX`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError, one_line, unknown_name
from jaxkd.models.tap import mode_arguments, output_of
from jaxkd.types import Array, Network, Output


def from_nnx(
  model: nnx.Module | Callable[..., nnx.Module],
  features: Mapping[str, str] | None = None,
  preactivations: Mapping[str, str] | None = None,
  *,
  logits: Callable[[Any], Array] | None = None,
  where: str = "from_nnx",
) -> FromNNX:
  """Wrap an NNX model as `__call__(images, train) -> Output`, a linen module.

  `model.train()` and `model.eval()` set its mode, and arguments such as `train` or `deterministic`
  of its `__call__` are passed where it has them. Batch statistics and all other variables are
  variables of the linen module. Random streams, whatever their names, draw from the linen stream
  "dropout".

  Args:
    model: an NNX module, whose present values `init` returns, whatever its key; or a class or
      function that is called with `rngs`, such as `functools.partial(Net, num_classes=10)`, whose
      values `init` draws with its key.
    features: stage -> path of the post-activation feature, shallow to deep, as for
      `jaxkd.models.tap`: "blocks/0" is the return value of `model.blocks[0]`, "head:input" the
      first argument of `model.head`. Without any, the features that the model returns.
    preactivations: likewise, of the same before the activation.
    logits: return value of the model -> logits, for a model that returns more than logits and no
      Output.
    where: subject of error messages.

  Raises:
    ConfigError: if the callable raises or returns no NNX module; for a layer that draws random
      numbers and has no `rngs`; for an unknown path, naming the nearest.

  >>> class Net(nnx.Module):
  ...   def __init__(self, rngs):
  ...     self.hidden, self.head = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
  ...   def __call__(self, x):
  ...     return self.head(nnx.relu(self.hidden(x)))
  >>> student = from_nnx(Net, {"pooled": "head:input"})
  >>> output, variables = student.init_with_output(jax.random.key(0), jax.numpy.ones((2, 4)))
  >>> output.logits.shape, output.features["pooled"].shape, sorted(variables["params"])
  ((2, 3), (2, 8), ['head', 'hidden'])
  """
  return FromNNX(_Source(where, model), {}, {}).with_taps(
    features or {}, preactivations or {}, logits
  )


def to_nnx(
  network: Network, model: nnx.Module | None = None, *, rngs: nnx.Rngs | None = None
) -> nnx.Module:
  """Return a network as an NNX model: with its own class if it was one, else by flax's bridge.

  Args:
    network: a network whose module is a linen module or comes from `from_nnx`, with the variables
      that it is to have, of training for example.
    model: an NNX model of the same architecture, which gets the variables and is returned; None
      makes a new one.
    rngs: random streams of a new model; None takes those that it was made with.

  Returns:
    The NNX model in evaluation mode (`model.eval()`); for a linen module a
    `flax.nnx.bridge.ToNNX`, called as `model(images, train=False)`.

  Raises:
    ConfigError: if the variables do not fit the model, naming the first difference.
  """
  module, variables = network.module, network.variables
  if not isinstance(module, FromNNX):
    if model is not None:
      raise ConfigError(f"to_nnx: a {type(module).__name__} is a linen module: expected model=None")
    bridged = nnx.bridge.ToNNX(module, rngs=rngs)
    for name, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(dict(variables)).items():
      setattr(bridged, name, nnx.data(value))
    return bridged
  if model is None:
    model = module.source.fresh(rngs)
  state = nnx.state(model, nnx.Not(nnx.RngState))
  nnx.update(model, _filled(state, jax.tree.map(jax.numpy.asarray, variables), "to_nnx"))
  model.eval()
  return model


class _Source:
  """The NNX model or factory of a module; compared by identity, as it is no value.

  Attributes:
    paths: path -> type of every submodule with a `__call__`.
  """

  def __init__(self, where: str, model: Any) -> None:
    self.where = where
    self._model = model
    if isinstance(model, nnx.Module):
      abstract = model
    else:
      if not callable(model):
        raise ConfigError(f"{where} is a {type(model).__name__}, expected an NNX module or class")
      abstract = self._abstract()
    self.paths: dict[str, type] = {}
    for path, submodule in nnx.iter_modules(abstract):
      name = "/".join(map(str, path))
      if name and callable(submodule):
        self.paths[name] = type(submodule)
      lacks_rngs = getattr(submodule, "rngs", self) is None
      if isinstance(submodule, nnx.Dropout) and submodule.rate and lacks_rngs:
        raise ConfigError(
          f"{where}: the nnx.Dropout at {name!r} has no rngs to draw from: expected "
          "nnx.Dropout(rate, rngs=rngs)"
        )
    parts: Any = nnx.split(abstract, nnx.RngState, ...)
    self.graph, self._random, self.abstract = parts
    self.kind: Any = type(abstract)

  def _abstract(self) -> nnx.Module:
    try:
      model = nnx.eval_shape(lambda: self._made(nnx.Rngs(0)))
    except ConfigError:
      raise
    except Exception as error:  # the user's code can raise any type
      reason = f"{type(error).__name__}: {one_line(error)}"
      raise ConfigError(f"{self.where} raised {reason}") from error
    return model

  def _made(self, rngs: nnx.Rngs) -> nnx.Module:
    model = self._model(rngs=rngs)
    if not isinstance(model, nnx.Module):
      raise ConfigError(
        f"{self.where} returns a {type(model).__name__} when called with rngs, expected an NNX "
        "module"
      )
    return model

  def drawn(self, key: Array) -> Any:
    """Return the initial state, without random streams; the present one of an instance."""
    if isinstance(self._model, nnx.Module):
      return nnx.state(self._model, nnx.Not(nnx.RngState))
    return nnx.state(self._made(nnx.Rngs(key)), nnx.Not(nnx.RngState))

  def fresh(self, rngs: nnx.Rngs | None) -> nnx.Module:
    """Return a new model; its values are replaced by the caller."""
    if isinstance(self._model, nnx.Module):
      model = nnx.clone(self._model)
      if rngs is not None:
        nnx.reseed(model, **{name: stream.key.get_value() for name, stream in rngs.items()})
      return model
    return self._made(rngs if rngs is not None else nnx.Rngs(0))

  def built(self, state: Any, key: Array) -> nnx.Module:
    """Return the model with a state, and with all random streams drawn from a key."""
    flat = []
    for path, leaf in nnx.to_flat_state(self._random):
      if isinstance(leaf, nnx.RngKey):
        own = jax.random.fold_in(key, zlib.crc32("/".join(map(str, path)).encode()) & 0x7FFFFFFF)
        shape = leaf.get_value().shape
        flat.append((path, leaf.replace(jax.random.split(own, shape) if shape else own)))
      else:
        zeros = jax.numpy.zeros(leaf.get_value().shape, leaf.get_value().dtype)
        flat.append((path, leaf.replace(zeros)))
    return nnx.merge(self.graph, nnx.from_flat_state(flat), state)


class FromNNX(nn.Module):
  """An NNX model as a linen module; created by `from_nnx`."""

  source: _Source
  features: Mapping[str, str]
  preactivations: Mapping[str, str]
  logits: Callable[[Any], Array] | None = None

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features, in the order given."""
    if self.features or self.preactivations:
      return tuple(self.features)
    return tuple(getattr(self.source.kind, "stages", ()))

  @property
  def foreign_statistics(self) -> bool:
    """True if the model has batch statistics, which padding cannot be left out of."""
    flat = nnx.to_flat_state(self.source.abstract)
    return any(isinstance(leaf, nnx.BatchStat) for _, leaf in flat)

  @nn.nowrap
  def with_taps(
    self,
    features: Mapping[str, str],
    preactivations: Mapping[str, str],
    logits: Callable[[Any], Array] | None = None,
  ) -> FromNNX:
    """Return the module with features at other paths; see `from_nnx`.

    Raises:
      ConfigError: for an unknown path, naming the nearest.
    """
    known = self.source.paths
    for path in (*features.values(), *preactivations.values()):
      if path.removesuffix(":input") not in known:
        raise unknown_name(f"path of {self.source.where}:", path, known)
    return self.clone(
      features=dict(features), preactivations=dict(preactivations), logits=logits or self.logits
    )

  @nn.compact
  def __call__(self, images: Any, train: bool = False) -> Output:
    """The model's logits, and its features, or those at the given paths."""
    source, scope = self.source, self.scope
    assert scope is not None
    key = self.make_rng("dropout" if "dropout" in scope.rngs else "params") if scope.rngs else None
    if self.is_initializing():
      state = source.drawn(self.make_rng("params"))
    else:
      state = _filled(source.abstract, self.variables, source.where)
    before = dict(nnx.to_flat_state(state))
    values = {path: leaf.get_value() for path, leaf in before.items()}
    model = source.built(state, jax.random.key(0) if key is None else key)
    (model.train if train else model.eval)()
    seen = _recorded(model, {*self.features.values(), *self.preactivations.values()})
    result = model(images, **mode_arguments(source.kind.__call__, train))
    changed = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    collections: dict[str, dict[tuple[str, ...], Any]] = {}
    for path, leaf in changed:
      collection = nnx.variablelib.variable_name_from_type(type(leaf), allow_register=True)
      value = leaf.get_value()
      if self.is_initializing() or (
        collection != "params"
        and self.is_mutable_collection(collection)
        and value is not values.get(path)
      ):
        collections.setdefault(collection, {})[tuple(map(str, path))] = value
    for collection, flat in collections.items():
      for name, tree in unflatten_dict(flat).items():
        old = self.variables.get(collection, {}).get(name)
        self.put_variable(collection, name, _merged(old, tree))
    return output_of(
      type(model).__name__, result, self.logits, self.features, self.preactivations, seen
    )


def _filled(state: Any, variables: Mapping[str, Any], where: str) -> Any:
  """Return a state of the same structure with the values of linen variables."""
  flat = []
  given = {c: flatten_dict(dict(tree)) for c, tree in variables.items()}
  for path, leaf in nnx.to_flat_state(state):
    collection = nnx.variablelib.variable_name_from_type(type(leaf), allow_register=True)
    name = tuple(map(str, path))
    if name not in given.get(collection, {}):
      raise ConfigError(f"{where}: there is no {collection}/{'/'.join(name)} among the variables")
    value = given[collection][name]
    if value.shape != leaf.get_value().shape:
      raise ConfigError(
        f"{where}: {collection}/{'/'.join(name)} has shape {value.shape}, the model needs "
        f"{leaf.get_value().shape}"
      )
    flat.append((path, leaf.replace(value)))
  return nnx.from_flat_state(flat)


def _merged(old: Any, new: Any) -> Any:
  if not isinstance(new, Mapping) or not isinstance(old, Mapping):
    return new
  return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _recorded(model: nnx.Module, wanted: set[str]) -> dict[str, Any]:
  """Make submodules record their results and arguments; return the dict that they write to.

  The submodules are those of one call, made for it, so that their class can be replaced.
  """
  seen: dict[str, Any] = {}
  for path, submodule in nnx.iter_modules(model):
    name = "/".join(map(str, path))
    if name and wanted & {name, f"{name}:input"}:
      kind = type(submodule)

      @functools.wraps(kind.__call__)
      def recording(
        self: Any, *args: Any, _call: Any = kind.__call__, _name: str = name, **kwargs: Any
      ) -> Any:
        result = _call(self, *args, **kwargs)
        seen[_name], seen[f"{_name}:input"] = result, args[0] if args else None
        return result

      replaced = type(kind.__name__, (kind,), {"__call__": recording})
      object.__setattr__(submodule, "__class__", replaced)
  return seen
