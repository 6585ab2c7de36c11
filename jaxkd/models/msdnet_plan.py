"""Which layers an MSDNet has, which scales they keep, and where it narrows."""

from __future__ import annotations

import dataclasses
import math

from jaxkd.errors import ConfigError, unknown_name

STEP_MODES = ("even", "lin_grow")
PRUNINGS = ("max", "min")


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of the plan. Scales are counted from 0, the images' own size.

  Attributes:
    finest: the finest scale it gives.
    drops: whether it also takes the scale finer than that, which ends there.
    reduced: channels, in units of the scales' growth factors, to which a 1x1 convolution after the
      layer narrows every scale; None for no such convolution.
  """

  finest: int
  drops: bool
  reduced: int | None


def layers_per_block(blocks: int, base: int, step: int, step_mode: str) -> tuple[int, ...]:
  """Layers of each block: `base` in the first, then `step` ("even") or b * step + 1 ("lin_grow").

  Raises:
    ConfigError: for an unknown `step_mode`.

  >>> layers_per_block(4, base=4, step=2, step_mode="even")
  (4, 2, 2, 2)
  >>> layers_per_block(4, base=1, step=2, step_mode="lin_grow")
  (1, 3, 5, 7)
  """
  if step_mode not in STEP_MODES:
    raise unknown_name("step_mode", step_mode, STEP_MODES)
  later = (step if step_mode == "even" else step * block + 1 for block in range(1, blocks))
  return (base, *later)


def plan(
  counts: tuple[int, ...],
  *,
  scales: int,
  channels: int,
  growth_rate: int,
  prune: str,
  reduction: float,
) -> tuple[tuple[Layer, ...], ...]:
  """The layers of every block.

  With n layers in all, "max" keeps scale s for the first (s + 1) * ceil(n / scales) of them and
  narrows after the first layer without it; "min" drops a scale at each of the last layers, so that
  one is left at the end, and narrows after layers n // 3 and 2n // 3.

  Args:
    counts: layers of each block.
    scales: how many there are at the start.
    channels: of scale 0 before the first layer, in units of its growth factor.
    growth_rate: channels a layer adds, in the same units.
    prune: "max" or "min".
    reduction: the share of channels kept where the network narrows; 0 never narrows.

  Raises:
    ConfigError: for an unknown `prune`, fewer layers than "min" needs to drop all scales but one,
      or a `reduction` that leaves no channel.

  >>> [layer] = plan((1,), scales=2, channels=16, growth_rate=6, prune="max", reduction=0.5)[0]
  >>> layer
  Layer(finest=0, drops=False, reduced=None)
  """
  if prune not in PRUNINGS:
    raise unknown_name("prune", prune, PRUNINGS)
  total = sum(counts)
  if prune == "min" and total < scales - 1:
    raise ConfigError(
      f"prune='min' drops a scale a layer: scales={scales} need at least {scales - 1} layers, "
      f"not {total}"
    )
  interval = math.ceil(total / scales)

  def finest(layer: int) -> int:
    if prune == "max":
      return max(0, layer) // interval
    return max(0, scales - total + layer)

  blocks, position, width = [], 0, channels
  for count in counts:
    layers = []
    for number in range(position, position + count):
      drops = finest(number) > finest(number - 1)
      width += growth_rate
      thirds = (total // 3, 2 * total // 3)
      narrows = reduction > 0 and (drops if prune == "max" else number + 1 in thirds)
      if narrows:
        width = _narrowed(width, reduction)
      layers.append(Layer(finest(number), drops, width if narrows else None))
    position += count
    blocks.append(tuple(layers))
  return tuple(blocks)


def _narrowed(width: int, reduction: float) -> int:
  left = math.floor(reduction * width)
  if left < 1:
    raise ConfigError(f"reduction={reduction} leaves none of {width} channels")
  return left
