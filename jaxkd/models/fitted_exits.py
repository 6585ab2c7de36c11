"""The exits that fit a network's stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.branched import check_staged
from jaxkd.models.exits import MultiExit
from jaxkd.models.heads import AttentionExit, BottleneckExit, ConvExit, LinearExit, ProjectedExit
from jaxkd.types import Output

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
  """A network with a head on each of some stages, of the widths and sizes that fit.

  | kind | head | hint of the deepest exit |
  |---|---|---|
  | linear | LinearExit: mean, linear | pooled |
  | conv | ConvExit: two convolutions, mean, linear | pooled |
  | projected | ProjectedExit: pooling, 1x1 convolution, mean, linear | the last map |
  | bottleneck | BottleneckExit: k x k convolution of stride k in a bottleneck | the last map |
  | attention | AttentionExit: attention, separable convolutions | pooled |

  With "attention", the deepest of the heads has no hint, as in the authors' code. The hints of
  "linear" and "conv" have the deepest exit's shape only where the channels happen to agree.

  Args:
    network: a model with `stages`, `encode` and `resume` (see jaxkd.models).
    output: what the network returns for a batch, or its shapes (`jax.eval_shape`).
    stages: the stages that get a head, in any order.
    kind: one of the table.
    num_classes: classes.
    axis_name: of the heads: device axis over which batch statistics are shared.
    dtype: of the heads' computation.

  Returns:
    The network with exits; its variables are made by its `init`.

  Raises:
    ConfigError: naming the stage and the kind, for an unknown one, no stages, a stage given twice,
      or a map that the kind cannot bring to the deepest one's size.
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
  """The head of one stage; `shapes` are those of all stages, shallow to deep."""
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
  """The smallest stride that brings `size` to `wanted`, rounding up, if any does."""
  stride = -(-size // wanted)
  return stride if -(-size // stride) == wanted else None


def _halved(shape: tuple[int, ...], times: int) -> tuple[int, int]:
  return -(-shape[1] // 2**times), -(-shape[2] // 2**times)
