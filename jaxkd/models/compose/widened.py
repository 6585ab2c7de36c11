"""Networks made wider, such that their first channels are the network itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.compose.channels import (
  first_channels,
  most_important_first,
  reorder,
  write_first_channels,
)
from jaxkd.models.zoo.mobilenet import GROUPS, GROUPS_OF, InvertedResidual, MobileNetV2
from jaxkd.models.zoo.resnet import BasicBlock, CifarResNet
from jaxkd.types import Array

# Classes of networks that can be made wider.
CLASSES = (CifarResNet, MobileNetV2)


@dataclasses.dataclass(frozen=True)
class Layers:
  """Names of the layers of a block.

  Attributes:
    inner: layers with the inner channels on their last axis, convolutions and normalisations.
    last: the convolution that reads the inner channels.
    outer: normalisations of the output.
  """

  inner: tuple[str, ...]
  last: str
  outer: tuple[str, ...]


_BASIC = Layers(("conv1", "bn1"), "conv2", ("bn2", "downsample_bn"))
_INVERTED = Layers(
  ("expand_conv", "expand_bn", "depthwise_conv", "depthwise_bn"), "project_conv", ("project_bn",)
)


@dataclasses.dataclass(frozen=True)
class Block:
  """A block of the network: its name, and its channels before, in and after it.

  Attributes:
    name: its submodule.
    before: input channels.
    inner: channels between its convolutions.
    after: output channels.
    residual: whether its output is a sum with its input itself, and so has the input's channels.
  """

  name: str
  before: int
  inner: int
  after: int
  residual: bool


@dataclasses.dataclass(frozen=True)
class Plan:
  """The channels of a network.

  Attributes:
    stem: channels of the first convolution.
    blocks: in their order.
    layers: names of the layers of a block.
    last: channels of a convolution after the blocks; 0 without.
  """

  stem: int
  blocks: tuple[Block, ...]
  layers: Layers
  last: int = 0


def plan_of(module: nn.Module) -> Plan:
  """Return the channels of a network of CLASSES.

  Raises:
    ConfigError: for another network.
  """
  if type(module) is CifarResNet:
    blocks, before = [], module.widths[0]
    for stage, after in enumerate(module.widths[1:], start=1):
      for i in range(module.blocks):
        project = i == 0 and (stage > 1 or before != after)
        blocks.append(Block(f"stage{stage}_{i}", before, after, after, not project))
        before = after
    return Plan(module.widths[0], tuple(blocks), _BASIC)
  if type(module) is MobileNetV2:
    blocks, before = [], module.channels["stem"]
    for k, (expansion, channels, stride) in enumerate(GROUPS):
      after = int(channels * module.width)
      for i in range(module.repeats[k]):
        residual = before == after and (i > 0 or stride == 1)
        blocks.append(Block(f"blocks_{k}_{i}", before, before * expansion, after, residual))
        before = after
    return Plan(module.channels["stem"], tuple(blocks), _INVERTED, module.last_width)
  raise ConfigError(
    f"a {type(module).__name__} is not made wider: expected a "
    f"{' or a '.join(c.__name__ for c in CLASSES)}"
  )


class Widened:
  """A network, and a wider one whose first channels it is.

  Widths and expansions are drawn independently: of the stem, of every block that changes the
  channels, and of the last convolution, the width is a factor of the network's own; of every block
  the inner channels are a factor of the network's own expansion (inner / input channels), times the
  drawn width of the input. Numbers of channels are rounded to the nearest, a half up.

  Attributes:
    base: the network.
    wide: the network with the largest of all channels, and layers of the same names.
    plan: the channels of the network.
  """

  def __init__(self, base: nn.Module, widths: Sequence[float], expansions: Sequence[float]) -> None:
    """Make the wide network; no arrays.

    Raises:
      ConfigError: if `widths` or `expansions` do not start with 1 and rise; for a network that is
        not of CLASSES.
    """
    for what, factors in (("widths", widths), ("expansions", expansions)):
      if not factors or factors[0] != 1 or list(factors) != sorted(set(factors)):
        raise ConfigError(f"{what}={tuple(factors)!r}: expected rising numbers that start with 1")
    self.base, self.plan = base, plan_of(base)
    self._widths, self._expansions = tuple(widths), tuple(expansions)
    # Channels by number of the width, and inner channels by numbers of width and expansion.
    self._stem = _rounded(self.plan.stem * np.asarray(widths))
    self._last = _rounded(self.plan.last * np.asarray(widths))
    self._before = {b.name: _rounded(b.before * np.asarray(widths)) for b in self.plan.blocks}
    self._after = {b.name: _rounded(b.after * np.asarray(widths)) for b in self.plan.blocks}
    self._inner = {
      b.name: _rounded(np.outer(self._before[b.name], b.inner / b.before * np.asarray(expansions)))
      for b in self.plan.blocks
    }
    self._shapes: dict[int, Any] = {}  # of the network's own variables, by channels of the images
    self.wide = self._wide_module()

  def _wide_module(self) -> nn.Module:
    base: Any = self.base
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base) if f.init}
    fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}
    inner = tuple(int(self._inner[b.name].max()) for b in self.plan.blocks)
    after = tuple(int(self._after[b.name].max()) for b in self.plan.blocks)
    stem = int(self._stem.max())
    if isinstance(base, CifarResNet):
      fields["widths"] = (stem, *after[base.blocks - 1 :: base.blocks])
      return WideCifarResNet(**fields, inner=inner)
    fields["last_width"] = int(self._last.max())
    return WideMobileNetV2(**fields, stem=stem, outputs=after, inner=inner)

  def draw(self, key: Array, *, wider: Any = True) -> dict[str, Array]:
    """Return the drawn channels of every batch normalisation of the wide network.

    Args:
      key: the same on all devices, which then train the same part of the network.
      wider: False leaves all widths at the network's own, and draws expansions alone; it may be
        traced.
    """
    keys = iter(jax.random.split(key, 2 + 2 * len(self.plan.blocks)))

    def width() -> Array:
      return jnp.where(wider, jax.random.randint(next(keys), (), 0, len(self._widths)), 0)

    number = width()
    counts = {"stem_bn": jnp.asarray(self._stem)[number]}
    for block in self.plan.blocks:
      drawn = width()
      expansion = jax.random.randint(next(keys), (), 0, len(self._expansions))
      inner = jnp.asarray(self._inner[block.name])[number, expansion]
      number = number if block.residual else drawn
      after = jnp.asarray(self._after[block.name])[number]
      layers = self.plan.layers
      counts |= {f"{block.name}/{layer}": inner for layer in layers.inner}
      counts |= {f"{block.name}/{layer}": after for layer in layers.outer}
    if self.plan.last:
      counts["last_bn"] = jnp.asarray(self._last)[width()]
    return counts

  def first_order(self) -> dict[str, Array]:
    """Return the inner channels of every block in the order in which the arrays have them."""
    return {
      b.name: jnp.arange(self._inner[b.name].max(), dtype=jnp.int32) for b in self.plan.blocks
    }

  def sorted_order(self, params: Mapping[str, Any]) -> dict[str, Array]:
    """Return the inner channels of every block by falling importance to its last convolution."""
    last = self.plan.layers.last
    return {b.name: most_important_first(params[b.name][last]["kernel"]) for b in self.plan.blocks}

  def ordered(self, variables: Mapping[str, Any], order: Mapping[str, Array]) -> dict[str, Any]:
    """Return the wide network's variables with the inner channels of its blocks in an order."""
    layers = self.plan.layers
    return {
      kind: {
        name: reorder(part, order[name], layers.inner, layers.last) if name in order else part
        for name, part in tree.items()
      }
      for kind, tree in variables.items()
    }

  def own(self, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the network, the first channels of those of the wide one."""
    image_channels = variables["params"]["stem_conv"]["kernel"].shape[2]
    if image_channels not in self._shapes:
      images = jax.ShapeDtypeStruct((1, 32, 32, image_channels), jnp.float32)
      self._shapes[image_channels] = jax.eval_shape(self.base.init, jax.random.key(0), images)
    shapes = self._shapes[image_channels]
    return first_channels({kind: variables[kind] for kind in shapes}, shapes)

  def with_own(
    self, tree: Mapping[str, Any], own: Mapping[str, Any], order: Mapping[str, Array]
  ) -> dict[str, Any]:
    """Return a tree of the wide network, such as its statistics, with the network's own in it."""
    inverse = {name: jnp.argsort(numbers) for name, numbers in order.items()}
    ordered = write_first_channels(self.ordered({"": tree}, order)[""], own)
    return self.ordered({"": ordered}, inverse)[""]


def _rounded(channels: Any) -> Any:
  # A product such as 5 * 1.1 may be just below a half.
  return np.floor(channels + 0.5 + 1e-9).astype(np.int32)


class WideCifarResNet(CifarResNet):
  """A CifarResNet whose blocks have inner channels of their own.

  Attributes:
    inner: channels between the convolutions of every block.
  """

  inner: tuple[int, ...] = ()

  def _blocks(self, stage: int) -> list[nn.Module]:
    before, width = self.widths[stage - 1 : stage + 1]
    found: list[nn.Module] = []
    for i in range(self.blocks):
      first = i == 0
      found.append(
        BasicBlock(
          width,
          2 if first and stage > 1 else 1,
          project=first and (stage > 1 or before != width),
          dropout=self.dropout,
          axis_name=self.axis_name,
          dtype=self.dtype,
          inner=self.inner[(stage - 1) * self.blocks + i],
        )
      )
    return found


class WideMobileNetV2(MobileNetV2):
  """A MobileNetV2 with channels of its own.

  Attributes:
    stem: channels of the first convolution.
    outputs: output channels of every block.
    inner: channels between the 1x1 convolutions of every block.
  """

  stem: int = 0
  outputs: tuple[int, ...] = ()
  inner: tuple[int, ...] = ()

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    ends = np.cumsum(self.repeats)
    stages = {stage: self.outputs[ends[groups[-1]] - 1] for stage, groups in GROUPS_OF.items()}
    return {"stem": self.stem} | stages | {"pooled": self.last_width}

  def _group(self, k: int) -> list[InvertedResidual]:
    expansion, _, stride = GROUPS[k]
    start = sum(self.repeats[:k])
    return [
      InvertedResidual(
        self.outputs[start + i],
        expansion,
        stride if i == 0 else 1,
        self.axis_name,
        self.dtype,
        inner=self.inner[start + i],
      )
      for i in range(self.repeats[k])
    ]
