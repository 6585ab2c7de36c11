"""A network that trains with rounded weights and activations: quantisation-aware training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._counting import counted_examples, keep
from jaxkd.models.compose.parts import separate
from jaxkd.models.compose.rounding import rounded, rounded_kernels
from jaxkd.types import Array, Network, Output

# Collection of the ranges of the layers' inputs.
RANGES = "quant_ranges"


class Precision(NamedTuple):
  """Bits of the weights and of the layers' inputs."""

  weights: int
  activations: int


# Inputs of 4 bits have no kernels in common run-time libraries.
PRECISIONS: Mapping[str, Precision] = {"int8": Precision(8, 8), "int4": Precision(4, 8)}

_LAYERS = (nn.Conv, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum)


class Quantized(nn.Module):
  """A network whose layers compute with rounded weights and inputs; gradients pass the rounding.

  Kernels are rounded symmetrically with one scale for each output channel, that of the largest
  magnitude. The inputs of convolutions and of dense layers are rounded with one scale and zero
  point for each layer; its range is a moving average of the batches' smallest and largest values,
  and includes 0. Biases, normalisation and everything else stay in floating point. The gradient is
  that of the network without rounding, and zero for inputs outside of the range (straight-through
  estimator).

  Before the first update in training mode a layer has no range yet: it takes that of its batch.

  The variables are those of the network, each collection in {"network": ...}, and
  {"quant_ranges": ...}: for each layer the decayed sums "low" and "high", and their "weight".

  Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
  Integer-Arithmetic-Only Inference"; per-channel weights as in Krishnamoorthi 2018.

  Attributes:
    network: the network, in floating point.
    weight_bits: bits of the kernels, from 2.
    activation_bits: bits of the layers' inputs, from 2; None leaves them in floating point.
    momentum: decay of the moving averages at each update.
  """

  # `jaxkd.padding` gives it the mask of the batch.
  takes_mask: ClassVar[bool] = True

  network: nn.Module
  weight_bits: int = 8
  activation_bits: int | None = 8
  momentum: float = 0.99

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the network's features, shallow to deep."""
    return tuple(self.network.stages)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features."""
    return self.network.channels

  @property
  def vectors(self) -> tuple[str, ...]:
    """The stages whose features are (B, C)."""
    return getattr(self.network, "vectors", ())

  @property
  def sequences(self) -> tuple[str, ...]:
    """The stages whose features are (B, tokens, C)."""
    return getattr(self.network, "sequences", ())

  @property
  def views(self) -> Mapping[str, str]:
    """Features from which no stage continues -> the stage that they are a part of."""
    return getattr(self.network, "views", {})

  @property
  def signed_stages(self) -> tuple[str, ...]:
    """The stages whose features have both signs."""
    return getattr(self.network, "signed_stages", ())

  def __call__(self, images: Array, train: bool = False, mask: Any = None) -> Output:
    """Return the network's Output.

    Args:
      images: as the network takes them.
      train: whether batch statistics move. Ranges move wherever their collection is mutable.
      mask: (B, ...), nonzero for the examples that count in the ranges; None counts all.
    """
    return self._run(lambda network: network(images, train), mask)

  def encode(
    self, images: Array, train: bool = False, to_stage: str = "pooled", mask: Any = None
  ) -> Output:
    """Features up to and including `to_stage`, without logits."""

    def call(network: nn.Module) -> Output:
      if hasattr(network, "encode"):
        return network.encode(images, train, to_stage)
      return network(images, train)

    return self._run(call, mask)

  def resume(
    self,
    features: Array,
    from_stage: str,
    train: bool = False,
    to_stage: str | None = None,
    mask: Any = None,
  ) -> Output:
    """Continue from the features of `from_stage`.

    Raises:
      ConfigError: if the network cannot.
    """
    if not hasattr(self.network, "resume"):
      raise ConfigError(
        f"{type(self.network).__name__} has no resume: it cannot go on from {from_stage!r}"
      )
    return self._run(lambda network: network.resume(features, from_stage, train, to_stage), mask)

  def _run(self, call: Callable[[nn.Module], Output], mask: Any) -> Output:
    mapped = nn.map_variables(
      call,
      "params",
      trans_in_fn=lambda tree: rounded_kernels(tree, self.weight_bits),
      init=self.is_initializing(),
      mutable=self.is_mutable_collection("params"),
    )
    if self.activation_bits is None:
      return mapped(self.network)
    with nn.intercept_methods(self._round_inputs(mask, self.activation_bits)):
      return mapped(self.network)

  def _round_inputs(self, mask: Any, bits: int) -> Callable[..., Any]:
    """Return the interceptor that rounds the inputs of layers."""

    def intercept(
      following: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], context: Any
    ) -> Any:
      module = context.module
      if not isinstance(module, _LAYERS) or context.method_name != "__call__":
        return following(*args, **kwargs)
      x, *others = args
      low, high = _range(module, x, mask, self.momentum)
      return following(rounded(x, low, high, bits), *others, **kwargs)

    return intercept


def _range(module: nn.Module, x: Array, mask: Any, momentum: float) -> tuple[Array, Array]:
  """Return the smallest and largest value of a layer's inputs, averaged over batches."""
  wide = jax.lax.stop_gradient(x).astype(jnp.float32)
  some: Any = True
  if mask is not None:
    if wide.shape[0] != mask.shape[0]:
      raise ConfigError(
        f"batch.mask {mask.shape}: {module.name} takes {x.shape}, whose first axis is not the "
        "examples'"
      )
    counted = counted_examples("batch.mask", mask, wide)
    wide, some = keep(counted, wide)[0], jnp.any(jnp.asarray(counted))
  # With 0 in the range, zeros of padding are exact.
  now: dict[str, Array] = {
    "low": jnp.minimum(jnp.min(wide), 0.0),
    "high": jnp.maximum(jnp.max(wide), 0.0),
  }
  zeros = {name: jnp.zeros((), jnp.float32) for name in ("low", "high", "weight")}
  kept = {name: module.get_variable(RANGES, name, zero) for name, zero in zeros.items()}
  if module.is_initializing():
    for name, zero in zeros.items():
      module.put_variable(RANGES, name, zero)
  elif module.is_mutable_collection(RANGES):
    for name, value in {**now, "weight": jnp.ones(())}.items():
      moved = momentum * kept[name] + (1 - momentum) * value
      kept[name] = jnp.where(some, moved, kept[name])
      module.put_variable(RANGES, name, kept[name])
  seen = kept["weight"] > 0
  weight = jnp.where(seen, kept["weight"], 1.0)
  low, high = (jnp.where(seen, kept[name] / weight, now[name]) for name in ("low", "high"))
  return low, high


def quantized(network: nn.Module, precision: str) -> Quantized:
  """Return a network that trains for a precision.

  Args:
    network: a model of one output.
    precision: "int8" (weights and inputs of layers), or "int4" (weights; inputs have 8 bits).

  Raises:
    ConfigError: for another precision, and for a model with exits.
  """
  if precision not in PRECISIONS:
    raise unknown_name("precision", precision, PRECISIONS)
  if hasattr(network, "num_exits"):
    raise ConfigError(
      f"quantize={precision!r}: {type(network).__name__} has exits of its own; expected a model of "
      "one output"
    )
  bits = PRECISIONS[precision]
  return Quantized(separate(network), bits.weights, bits.activations)


def with_ranges(module: Quantized, variables: Mapping[str, Any], inputs: Any) -> dict[str, Any]:
  """Return variables of a quantized network from those of its network in floating point.

  Args:
    module: the quantized network.
    variables: variables of `module.network`.
    inputs: arrays of the shapes of inputs, or their shapes: nothing is computed.
  """
  key = jax.random.key(0)
  drawn = jax.eval_shape(lambda x: module.init({"params": key, "dropout": key}, x), inputs)
  ranges = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), drawn.get(RANGES, {}))
  return {**{name: {"network": part} for name, part in variables.items()}, RANGES: ranges}


def calibrated(network: Network, precision: str, batches: Iterable[Any]) -> Network:
  """Quantise a trained network afterwards: round it, with the ranges that examples have.

  Args:
    network: a trained network in floating point.
    precision: as of `quantized`.
    batches: inputs as the network takes them, at least one batch.

  Raises:
    ConfigError: as `quantized`, and without a batch.
  """
  module = quantized(network.module, precision)
  variables: dict[str, Any] = {}
  step = jax.jit(lambda v, x: module.apply(v, x, train=False, mutable=[RANGES])[1])
  for inputs in batches:
    variables = variables or with_ranges(module, network.variables, inputs)
    variables = {**variables, **step(variables, inputs)}
  if not variables:
    raise ConfigError("batches: expected at least one, from which the ranges are taken")
  return Network(module, variables, network.preprocessing)


def unrounded(module: Quantized, variables: Mapping[str, Any]) -> Network:
  """Return the network of a quantized one, with its weights in floating point."""
  own = {name: part["network"] for name, part in variables.items() if name != RANGES}
  return Network(separate(module.network), own)


def inside(module: nn.Module) -> Iterator[Quantized]:
  """Yield the quantized networks in a module, the module itself included."""
  if isinstance(module, Quantized):
    yield module
    return
  for part in _fields(module).values():
    for value in part.values() if isinstance(part, Mapping) else [part]:
      if isinstance(value, nn.Module):
        yield from inside(value)


def with_float_inputs(module: nn.Module) -> nn.Module:
  """Return a module in which inputs of quantized networks' layers stay in floating point."""
  if isinstance(module, Quantized):
    return separate(module).clone(activation_bits=None)

  def changed(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {name: changed(part) for name, part in value.items()}
    return with_float_inputs(value) if isinstance(value, nn.Module) else value

  return module.clone(**{name: changed(value) for name, value in _fields(module).items()})


def _fields(module: nn.Module) -> dict[str, Any]:
  """Return the values of a module's own fields."""
  names = (field.name for field in dataclasses.fields(module) if field.init)
  return {name: getattr(module, name) for name in names if name not in ("parent", "name")}


def input_ranges(variables: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
  """Yield path, lowest and highest value of each layer's inputs, as the averages have them.

  Args:
    variables: of a network that is or has a `Quantized`. The paths are those of its parameters,
      such as "network/stem_conv".

  Raises:
    ConfigError: for a network that was never trained.
  """
  kept = flatten_dict(dict(variables[RANGES]), sep="/")
  for path in sorted({path.rpartition("/")[0] for path in kept}):
    low, high, weight = (float(kept[f"{path}/{name}"]) for name in ("low", "high", "weight"))
    if weight <= 0:
      raise ConfigError(f"{path} has no range: the network was not trained")
    yield path, low / weight, high / weight
