"""Networks with exits on their stages, and the choice of heads that fit the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.compose.heads import (
  AttentionExit,
  BottleneckExit,
  ConvExit,
  LinearExit,
  ProjectedExit,
)
from jaxkd.models.compose.parts import check_staged, separate
from jaxkd.types import Array, Network, Output


class MultiExit(nn.Module):
  """A network with extra classifiers on its stages; the deepest exit is its own classifier.

  The variables are {"params": {"network": ..., "heads_STAGE": ...}, "batch_stats": ...}; "network"
  holds the variables of the plain network. `jaxkd.models.with_exits` chooses the heads.

  Attributes:
    network: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    heads: stage -> `__call__(features, train) -> Output`, see `jaxkd.models.compose.heads`.
      The order of the exits is that of the network's stages.
    hint_stage: the stage whose feature is `features["hint"]` of the deepest exit, to which the
      "hint" of every head is compared. Not before the stage of the last head.
  """

  network: nn.Module
  heads: Mapping[str, nn.Module]
  hint_stage: str = "stage3"

  def setup(self) -> None:
    """Check the stages.

    Raises:
      ConfigError: for a network without stages, an unknown stage, or a hint before the last head.
    """
    check_staged(self.network, "MultiExit")
    for stage in self.heads:
      if stage not in self.stages:
        raise unknown_name("stage of a head", stage, self.stages)
    if self.hint_stage not in self.stages:
      raise unknown_name("hint_stage", self.hint_stage, self.stages)
    last = self.exit_stages[-1] if self.heads else self.stages[0]
    if self.stages.index(self.hint_stage) < self.stages.index(last):
      raise ConfigError(f"hint_stage {self.hint_stage!r} comes before the last head's, {last!r}")

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the network's features, shallow to deep."""
    return tuple(self.network.stages)

  @property
  def exit_stages(self) -> tuple[str, ...]:
    """The stages that have heads, shallow to deep: one for every exit but the deepest."""
    return tuple(stage for stage in self.stages if stage in self.heads)

  @property
  def num_exits(self) -> int:
    """Number of exits: the heads and the network's own classifier."""
    return len(self.heads) + 1

  def __call__(self, images: Array, train: bool = False) -> tuple[Output, ...]:
    """One Output per exit, shallowest first; the deepest has all of the network's features.

    Raises:
      ConfigError: see the attributes.
    """
    carry, outputs = images, []
    features: dict[str, Array] = {}
    preactivations: dict[str, Array] = {}
    for block in range(self.num_exits):
      passed, output = self._block(carry, block, train)
      features |= passed.features
      preactivations |= passed.preactivations
      carry = self._carried(passed, carry, block)
      outputs.append(output)
    deepest = outputs.pop()
    outputs.append(Output(deepest.logits, {**features, **deepest.features}, preactivations))
    return tuple(outputs)

  def run_block(self, carry: Array, block: int, train: bool = False) -> tuple[Array, Output]:
    """Run the layers between one exit and the next, and that exit; no deeper layers.

    `__call__` is a loop over this method; there the deepest exit also gets the features of all
    blocks.

    Args:
      carry: the images for block 0, else the carry that the previous block returned.
      block: index of the block, from 0.
      train: as in `__call__`.

    Returns:
      The carry for the next block, which is the feature of this exit's stage (B, ...), and the
      Output of the exit. For the deepest exit the carry is its logits, and the Output has the
      features of its block only.

    Raises:
      ConfigError: for a block out of range; see also the attributes.
    """
    if not 0 <= block < self.num_exits:
      raise ConfigError(f"block {block}: there are blocks 0 to {self.num_exits - 1}")
    passed, output = self._block(carry, block, train)
    return self._carried(passed, carry, block), output

  def _block(self, carry: Array, block: int, train: bool) -> tuple[Output, Output]:
    """The network's Output between two exits, and the Output of the second exit."""
    before = self.exit_stages[block - 1] if block else None
    deepest = block == self.num_exits - 1
    stop = {} if deepest else {"to_stage": self.exit_stages[block]}
    if before is not None:
      passed = self.network.resume(carry, before, train, **stop)
    elif deepest:
      passed = self.network(carry, train)
    else:
      passed = self.network.encode(carry, train, **stop)
    if deepest:
      hint = passed.features[self.hint_stage] if self.hint_stage != before else carry
      features = {**passed.features, "hint": hint}
      return passed, Output(passed.logits, features, passed.preactivations)
    stage = self.exit_stages[block]
    return passed, self.heads[stage](passed.features[stage], train)

  def _carried(self, passed: Output, carry: Array, block: int) -> Any:
    deepest = block == self.num_exits - 1
    return passed.logits if deepest else passed.features[self.exit_stages[block]]


def plain_network(module: MultiExit, variables: Mapping[str, Any]) -> Network:
  """The network without its extra exits, with the plain network's variable names.

  Args:
    module: the network with exits.
    variables: its Flax variables.

  Returns:
    The network and its variables; the arrays are not copied.

  Raises:
    ConfigError: for variables without a part "network".
  """
  if "network" not in variables.get("params", {}):
    raise ConfigError("variables: params/network is missing")
  own = {name: tree["network"] for name, tree in variables.items() if "network" in tree}
  return Network(separate(module.network), own)


KINDS = ("linear", "conv", "projected", "bottleneck", "attention")


def with_exits(
  network: nn.Module,
  output: Output,
  stages: Sequence[str],
  *,
  kind: str = "linear",
  num_classes: int,
  axis_name: str | None = None,
  dtype: Any = None,
) -> MultiExit:
  """Add a head to each of the given stages, with the widths and sizes that fit.

  | kind | head | hint of the deepest exit |
  |---|---|---|
  | linear | LinearExit: mean, linear | pooled |
  | conv | ConvExit: two convolutions, mean, linear | pooled |
  | projected | ProjectedExit: pooling, 1x1 convolution, mean, linear | the last map |
  | bottleneck | BottleneckExit: k x k convolution of stride k in a bottleneck | the last map |
  | attention | AttentionExit: attention, separable convolutions | pooled |

  With "attention", the deepest head has no hint, as in the authors' code. The hints of "linear" and
  "conv" have the shape of the deepest exit's hint only if the channels agree.

  Args:
    network: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    output: the network's Output for a batch, or its shapes (`jax.eval_shape`).
    stages: the stages that get a head, in any order.
    kind: one of the table.
    num_classes: number of classes.
    axis_name: device axis over which the heads share batch statistics.
    dtype: of the heads' computation.

  Returns:
    The network with exits; its variables are made by its `init`.

  Raises:
    ConfigError: naming the stage and the kind, for an unknown stage or kind, no stages, a stage
      given twice, or a map that the kind cannot reduce to the deepest map's size.
  """
  check_staged(network, "with_exits")
  if kind not in KINDS:
    raise unknown_name("kind of exit", kind, KINDS)
  if num_classes < 1:
    raise ConfigError(f"num_classes must be at least 1, not {num_classes}")
  for stage in stages:
    if stage not in network.stages or stage not in output.features:
      raise unknown_name(
        f"stage for a {kind} exit:", stage, [s for s in network.stages if s in output.features]
      )
  if not stages or len(set(stages)) < len(stages):
    raise ConfigError(
      f"stages for {kind} exits are {list(stages)}: they must be one or more of "
      f"{', '.join(network.stages)}, none twice"
    )
  shapes = {s: tuple(output.features[s].shape) for s in network.stages if s in output.features}
  ordered = [stage for stage in network.stages if stage in stages]
  to_map = kind in ("projected", "bottleneck")
  hints = [s for s in shapes if len(shapes[s]) == 4] if to_map else [list(network.stages)[-1]]
  if not hints or hints[-1] not in shapes:
    raise ConfigError(f"{kind} exits: the network gives no {'map' if to_map else 'pooled feature'}")
  common = {"num_classes": num_classes, "axis_name": axis_name, "dtype": dtype}
  heads = {
    stage: _head(kind, stage, shapes, adapt=stage != ordered[-1], common=common)
    for stage in ordered
  }
  return MultiExit(network, heads, hint_stage=hints[-1])


def _head(
  kind: str, stage: str, shapes: Mapping[str, tuple[int, ...]], *, adapt: bool, common: Any
) -> nn.Module:
  """The head of one stage; `shapes` has the shapes of all stages, shallow to deep."""
  if kind == "linear":
    return LinearExit(**common)
  shape = shapes[stage]
  where = f"stage {stage!r}: no {kind} exit on features {shape}"
  if len(shape) != 4:
    raise ConfigError(f"{where}: they must be a map, (B, H, W, C); kind 'linear' takes any")
  if kind == "conv":
    return ConvExit(**common)
  maps = [s for s in shapes.values() if len(s) == 4]
  (rows, columns), (height, width), channels = shape[1:3], maps[-1][1:3], maps[-1][3]
  if kind == "projected":
    return ProjectedExit(width=channels, size=(height, width), **common)
  if kind == "bottleneck":
    down, across = _stride(rows, height), _stride(columns, width)
    if down is None or across is None:
      raise ConfigError(f"{where}: no stride brings them to the deepest map's {height}x{width}")
    return BottleneckExit(width=channels, stride=(down, across), **common)
  halvings = next((n for n in range(rows + columns) if _halved(shape, n) == (height, width)), None)
  if halvings is None:
    raise ConfigError(f"{where}: halving does not bring them to the deepest map's {height}x{width}")
  pooled = list(shapes.values())[-1][-1]
  return AttentionExit(width=pooled, halvings=halvings, adapt=adapt, **common)


def _stride(size: int, wanted: int) -> int | None:
  """The smallest stride that reduces `size` to `wanted`, rounding up; None if there is none."""
  stride = -(-size // wanted)
  return stride if -(-size // stride) == wanted else None


def _halved(shape: tuple[int, ...], times: int) -> tuple[int, int]:
  return -(-shape[1] // 2**times), -(-shape[2] // 2**times)
