"""ViTKD: shallow tokens of a vision transformer are mimicked, deep ones generated."""

from __future__ import annotations

import math
from typing import Any

from jaxkd.adapters import TokenGenerator
from jaxkd.errors import ConfigError
from jaxkd.fields import names, number, text
from jaxkd.losses import vit_distillation
from jaxkd.methods._features import feature_term
from jaxkd.methods._stages import AUTO, stage_pairs
from jaxkd.methods.base import Method, Setup, Shape, StagePair, Term
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  own = setup.hyperparameters
  low = _pairs(setup, own.low_stages, slice(0, 2))
  [high] = _pairs(setup, (own.high_stage,), slice(-1, None))
  found = [_tokens(setup, pair) for pair in (*low, high)]
  prefixes, (student, teacher) = found[-1]
  for pair, (_, shapes) in zip((*low, high), found, strict=True):
    if shapes != (student, teacher):
      raise ConfigError(
        f"stages {':'.join(pair)} have tokens {shapes}, {':'.join(high)} {(student, teacher)}: "
        "expected the same"
      )
  if student[0] != teacher[0] or math.isqrt(student[0]) ** 2 != student[0]:
    raise ConfigError(
      f"the student has {student[0]} patches and the {setup.teacher_name} {teacher[0]}: method "
      "'vitkd' needs the same square number of both"
    )
  adapter = TokenGenerator(
    low=low,
    high=high,
    prefixes=prefixes,
    width=teacher[1],
    align=student[1] != teacher[1],
    masked=own.masked,
    **setup.options,
  )
  loss = per_example(
    vit_distillation,
    low=tuple(f"low{i + 1}" for i in range(len(low))),
    low_weight=own.low_weight,
    high_weight=own.high_weight,
    masked=own.masked,
  )
  return [feature_term("vitkd", setup, loss, [*low, high], adapter=adapter)]


def _pairs(setup: Setup, named: tuple[str, ...], auto: slice) -> tuple[StagePair, ...]:
  """Return pairs of stages; "auto" takes a part of the stages with tokens of each network."""
  found: list[StagePair] = []
  for ours, theirs in stage_pairs(named):
    if AUTO in (ours, theirs):
      sides = (list(_sequences(setup, owner))[auto] for owner in range(2))
      found += zip(*sides, strict=True)
    else:
      found.append((ours, theirs))
  return tuple(found)


def _sequences(setup: Setup, owner: int) -> dict[str, Shape]:
  """Return the stages after the embedding with tokens, or maps of a network without tokens.

  Raises:
    ConfigError: if there are fewer than three.
  """
  shapes = setup.all_shapes()[owner]
  tokens = {stage: shape for stage, shape in shapes.items() if len(shape) == 3}
  maps = {stage: shape for stage, shape in shapes.items() if len(shape) == 4}
  # The first is the embedding of the patches.
  found = dict(list((tokens or maps).items())[1:])
  if len(found) < 3 or len(set(found.values())) > 1:
    name = ("student", setup.teacher_name)[owner]
    has = ", ".join(f"{stage} {shape[1:]}" for stage, shape in shapes.items()) or "none"
    raise ConfigError(
      f"method 'vitkd' compares tokens of blocks, and the {name} has the features {has}: expected "
      "at least three stages of the same shape after the first"
    )
  return found


def _tokens(setup: Setup, pair: StagePair) -> tuple[tuple[int, int], Any]:
  """Return the numbers of tokens before the patches, and (patches, width) of both networks."""
  prefixes, shapes = [], []
  for shape, network in zip(setup.shapes(pair), (setup.student, setup.teacher.module), strict=True):
    patches = math.prod(shape[1:-1])
    # Without a field for it: what is more than a square number.
    more = getattr(network, "prefix", patches - math.isqrt(patches) ** 2)
    prefix = more if len(shape) == 3 else 0
    prefixes.append(prefix)
    shapes.append((patches - prefix, shape[-1]))
  return (prefixes[0], prefixes[1]), tuple(shapes)


METHOD = Method(
  "ViTKD: mimicked and generated tokens of vision transformers (Yang et al., 2022)",
  {
    # "auto" is the outputs of the first two blocks, and the last output, normalised if the
    # network gives it so.
    "low_stages": names((AUTO,)),
    "high_stage": text(AUTO),
    "low_weight": number(3e-5),
    "high_weight": number(3e-6),
    "masked": number(0.5, maximum=1.0, exclusive=True),
    "weight": number(1.0),
  },
  _distillations,
  source="Yang et al., ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation, 2022",
  needs="features",
  same_classes="",
  multi_label=True,
)
