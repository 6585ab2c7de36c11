"""How a config names stages, and what brings a student's widths to the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flax import linen as nn

from jaxkd.adapters import regressor_for
from jaxkd.config import Field, choice
from jaxkd.errors import ConfigError
from jaxkd.recipes.method import Pair
from jaxkd.recipes.pairing import last_stages, paired_stages

# What a config says to leave the choice to the networks' shapes.
AUTO = "auto"

Where = Literal["features", "preactivations"]


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


def chosen_pairs(
  pair: Pair, *, where: Where = "features", vectors: bool = False
) -> tuple[tuple[str, str], ...]:
  """The pairs of stages that the config's `stages` name; "auto" stands for all that match.

  Args:
    pair: the networks, which must have the stages.
    where: which arrays are meant.
    vectors: whether "auto" may choose features (B, C).

  Raises:
    ConfigError: for a stage that one of them lacks, or an "auto" that finds none.
  """
  pairs: list[tuple[str, str]] = []
  for named in stage_pairs(pair.hyperparameters.stages):
    pairs += paired_stages(*pair.all_shapes(where), vectors=vectors) if AUTO in named else [named]
  for found in pairs:
    if found != ("images", "images"):
      pair.shapes(found, where)
  return tuple(pairs)


def hint_pair(pair: Pair) -> tuple[str, str]:
  """The pair of stages that the config's `stage` names; "auto" is the second of all pairs.

  Raises:
    ConfigError: as `chosen_pairs`.
  """
  [named] = stage_pairs((pair.hyperparameters.stage,))
  if AUTO in named:
    found = paired_stages(*pair.all_shapes(), vectors=True)
    named = found[min(1, len(found) - 1)]
  pair.shapes(named)
  return named


def last_pair(pair: Pair, *, vectors: bool = False) -> tuple[str, str]:
  """The pair of stages that the config's `stage` names; "auto" is the last before pooling of each.

  Raises:
    ConfigError: as `chosen_pairs`.
  """
  [named] = stage_pairs((pair.hyperparameters.stage,))
  if AUTO in named:
    named = last_stages(*pair.all_shapes(), vectors=vectors)
  pair.shapes(named)
  return named


def stage_options(
  pair: Pair, pairs: Sequence[tuple[str, str]], *, flows: bool = False
) -> dict[str, Any]:
  """The options `stages` and `stage_weights` of a loss.

  Args:
    pair: the networks; the weights are the config's field of that name.
    pairs: the stages.
    flows: the weights are those of adjacent pairs of stages.

  Raises:
    ConfigError: for weights that are not as many.
  """
  weights = tuple(pair.hyperparameters.stage_weights)
  count = len(pairs) - flows
  if weights and len(weights) != count:
    what = "pair of adjacent stages" if flows else "stage"
    raise ConfigError(f"method.stage_weights={weights}: expected {count}, one for each {what}")
  return {"stages": tuple(pairs), "stage_weights": weights or None}


# Of the module that imitates a teacher's features: "auto" is a ReLU unless they have both signs.
ACTIVATION: Field = choice(AUTO, (AUTO, "relu", "none"))


def ends_in_relu(pair: Pair, stage: str) -> bool:
  """Whether what imitates the teacher's `stage` ends in a ReLU, by the config's `activation`."""
  chosen = pair.hyperparameters.activation
  if chosen == AUTO:
    return stage not in getattr(pair.teacher.module, "signed_stages", ())
  return chosen == "relu"


def widths_matched(
  pair: Pair,
  stages: Sequence[tuple[str, str]],
  where: Where = "features",
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
