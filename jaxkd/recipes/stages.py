"""How a config names stages, and what brings a student's widths to the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flax import linen as nn

from jaxkd.connectors import regressor_for
from jaxkd.errors import ConfigError
from jaxkd.recipes.method import Pair

STAGES = ("stage1", "stage2", "stage3")


def stage_pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
  """(student's stage, teacher's stage) for every "stage" or "student's:teacher's".

  >>> stage_pairs(("stage1", "stage2:stage3"))
  (('stage1', 'stage1'), ('stage2', 'stage3'))
  """
  pairs = []
  for name in names:
    ours, colon, theirs = name.partition(":")
    pairs.append((ours, theirs if colon else ours))
  return tuple(pairs)


def stage_options(
  pair: Pair, *, where: Literal["features", "preactivations"] = "features", flows: bool = False
) -> dict[str, Any]:
  """The options `stages` and `stage_weights` of a loss, from the config's fields of those names.

  Args:
    pair: the networks, which must have the stages.
    where: which arrays are meant.
    flows: the weights are those of adjacent pairs of stages.

  Raises:
    ConfigError: for a stage that one of them lacks, or weights that are not as many.
  """
  own = pair.hyperparameters
  stages, weights = stage_pairs(own.stages), tuple(own.stage_weights)
  for stage in stages:
    pair.shapes(stage, where)
  count = len(stages) - flows
  if weights and len(weights) != count:
    what = "pair of adjacent stages" if flows else "stage"
    raise ConfigError(f"method.stage_weights={weights}: expected {count}, one for each {what}")
  return {"stages": stages, "stage_weights": weights or None}


def widths_matched(
  pair: Pair,
  stages: Sequence[tuple[str, str]],
  where: Literal["features", "preactivations"] = "features",
  *,
  sizes: bool = False,
) -> dict[str, nn.Module]:
  """Connectors where the student's channels differ from the teacher's, for losses that need equal.

  Each is a convolution without bias, and batch normalisation: 1x1, or whatever also brings the
  size (`sizes`) to the teacher's.
  """
  connectors: dict[str, nn.Module] = {}
  for ours, theirs in stages:
    student, teacher = pair.shapes((ours, theirs), where)
    if (sizes and student == teacher) or (not sizes and student[-1] == teacher[-1]):
      continue
    target = teacher if sizes else (*student[:-1], teacher[-1])
    connectors[ours] = regressor_for(
      student, target, stage=ours, use_bias=False, activation=False, **pair.options
    )
  return connectors
