"""The stages of a student and a teacher that are compared, and adapters for their widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from flax import linen as nn

from jaxkd.adapters import AtStages, regressor_for
from jaxkd.errors import ConfigError
from jaxkd.fields import Field, choice
from jaxkd.methods.base import Setup, StagePair

# The value of a config field for stages chosen from the networks' shapes.
AUTO = "auto"

Where = Literal["features", "preactivations"]
Shapes = Mapping[str, tuple[int, ...]]
Pairs = tuple[tuple[str, str], ...]

# Not compared by "auto": a stem has a small receptive field, "pooled" has no spatial axes.
_ENDS = ("stem", "pooled")


def stage_pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
  """Return (student's stage, teacher's stage) for every "STAGE" or "STUDENT_STAGE:TEACHER_STAGE".

  >>> stage_pairs(("stage1", "stage2:stage3"))
  (('stage1', 'stage1'), ('stage2', 'stage3'))
  """
  pairs = []
  for name in names:
    ours, colon, theirs = name.partition(":")
    pairs.append((ours, theirs if colon else ours))
  return tuple(pairs)


def chosen_pairs(
  setup: Setup, *, where: Where = "features", vectors: bool = False, last: bool = False
) -> tuple[tuple[str, str], ...]:
  """Return the pairs of stages that the config's `stages` name; "auto" is all that match.

  Args:
    setup: the networks, which must have the stages.
    where: which arrays are compared.
    vectors: whether "auto" may choose features (B, C).
    last: whether "auto" is the last pair alone: the last stage before pooling of each.

  Raises:
    ConfigError: for a stage that one of them lacks, or an "auto" that finds none.
  """
  pairs: list[tuple[str, str]] = []
  for named in stage_pairs(setup.hyperparameters.stages):
    if AUTO not in named:
      pairs.append(named)
      continue
    shapes = setup.all_shapes(where)
    found = paired_stages(*shapes, vectors=vectors)
    if last:
      found = (last_stages(*shapes) if all(map(_maps, shapes)) else found[-1],)
    pairs += found
  for pair in pairs:
    if pair != ("images", "images"):
      setup.shapes(pair, where)
  return tuple(pairs)


def hint_pair(setup: Setup) -> tuple[str, str]:
  """Return the pair of stages that the config's `stage` names; "auto" is the second of all pairs.

  Raises:
    ConfigError: as `chosen_pairs`.
  """
  [named] = stage_pairs((setup.hyperparameters.stage,))
  if AUTO in named:
    found = paired_stages(*setup.all_shapes(), vectors=True)
    named = found[min(1, len(found) - 1)]
  setup.shapes(named)
  return named


def last_pair(setup: Setup, *, vectors: bool = False) -> tuple[str, str]:
  """Return the pair of stages of the config's `stage`; "auto" is the last before pooling of each.

  Raises:
    ConfigError: as `chosen_pairs`.
  """
  [named] = stage_pairs((setup.hyperparameters.stage,))
  if AUTO in named:
    named = last_stages(*setup.all_shapes(), vectors=vectors)
  setup.shapes(named)
  return named


def stage_options(
  setup: Setup, pairs: Sequence[tuple[str, str]], *, flows: bool = False
) -> dict[str, Any]:
  """Return the options `stages` and `stage_weights` of a loss.

  Args:
    setup: the networks; the weights are the config's field of that name.
    pairs: the pairs of stages.
    flows: the weights belong to adjacent pairs of stages.

  Raises:
    ConfigError: if the number of weights is wrong.
  """
  weights = tuple(setup.hyperparameters.stage_weights)
  count = len(pairs) - flows
  if weights and len(weights) != count:
    what = "pair of adjacent stages" if flows else "stage"
    raise ConfigError(f"method.stage_weights={weights}: expected {count}, one for each {what}")
  return {"stages": tuple(pairs), "stage_weights": weights or None}


# Last activation of a module that imitates features: "auto" is a ReLU unless they are signed.
ACTIVATION: Field = choice(AUTO, (AUTO, "relu", "none"))


def ends_in_relu(setup: Setup, stage: str) -> bool:
  """Check whether the module that imitates the teacher's `stage` ends in a ReLU."""
  chosen = setup.hyperparameters.activation
  if chosen == AUTO:
    return stage not in getattr(setup.teacher.module, "signed_stages", ())
  return chosen == "relu"


def adapter_at(
  name: str, setup: Setup, modules: Mapping[str, nn.Module], where: Where = "features"
) -> dict[str, Any]:
  """Return the attributes of a Distillation that pass the student's arrays through modules.

  Args:
    name: name of the distillation.
    setup: the networks.
    modules: stage of the student -> module; an empty mapping leaves the arrays unchanged.
    where: "features" or "preactivations".
  """
  if not modules:
    return {}
  named = setup.named(name)
  # The participant of one stage's adapter keeps the name it has in checkpoints since version 0.1.
  participant = f"{named}_{next(iter(modules))}_connector" if len(modules) == 1 else ""
  return {"adapter": AtStages(modules, where), "adapter_name": participant}


def widths_matched(
  name: str,
  setup: Setup,
  stages: Sequence[StagePair],
  where: Where = "features",
  *,
  sizes: bool = False,
) -> dict[str, Any]:
  """Return `adapter_at` with a module where the student's channels differ from the teacher's.

  Each module is a convolution without bias, and batch normalisation. The convolution is 1x1; with
  `sizes`, it also changes the size to the teacher's.
  """
  modules: dict[str, nn.Module] = {}
  for ours, theirs in stages:
    student, teacher = setup.shapes((ours, theirs), where)
    if (sizes and student == teacher) or (not sizes and student[-1] == teacher[-1]):
      continue
    target = teacher if sizes else (*student[:-1], teacher[-1])
    modules[ours] = regressor_for(
      student, target, stage=ours, use_bias=False, activation=False, **setup.options
    )
  return adapter_at(name, setup, modules, where)


def paired_stages(student: Shapes, teacher: Shapes, *, vectors: bool = False) -> Pairs:
  """Return (student's stage, teacher's stage) for stages between the stem and the pooled features.

  With equal numbers of stages, they are paired in order. Otherwise stages of equal spatial size are
  paired, the deepest of each size. If the networks have no size in common, every stage of the
  network with fewer stages is paired with the stage of the other that is nearest in size, in order.

  Args:
    student: stage -> shape, batch included, shallow to deep.
    teacher: likewise.
    vectors: whether features without spatial axes, (B, C), may be compared. They are compared if a
      network has no feature maps: the hidden layers if neither has any, else both "pooled".

  Raises:
    ConfigError: if a network has no stage that can be compared.

  >>> student = {f"stage{i}": (2, n, n, 8) for i, n in enumerate((16, 8, 4, 4), start=1)}
  >>> teacher = {f"stage{i}": (2, n, n, 8) for i, n in enumerate((32, 16, 8), start=1)}
  >>> paired_stages(student, teacher)
  (('stage1', 'stage2'), ('stage2', 'stage3'))
  """
  if vectors and not (_maps(student) and _maps(teacher)):
    return _paired_vectors(student, teacher)
  ours, theirs = need_maps(student, "student"), need_maps(teacher, "teacher")
  if len(ours) == len(theirs):
    return tuple(zip(ours, theirs, strict=True))
  sizes = [{stage: shape[1:3] for stage, shape in of.items()} for of in (ours, theirs)]
  # Later stages overwrite earlier ones of the same size.
  by_size = [{size: stage for stage, size in of.items()} for of in sizes]
  if equal := [
    (stage, by_size[1][size]) for size, stage in by_size[0].items() if size in by_size[1]
  ]:
    return tuple(equal)
  if len(ours) < len(theirs):
    return tuple(zip(ours, _nearest(*sizes), strict=True))
  return tuple(zip(_nearest(sizes[1], sizes[0]), theirs, strict=True))


def last_stages(student: Shapes, teacher: Shapes, *, vectors: bool = False) -> tuple[str, str]:
  """Return the last stage before the pooled features, of student and teacher.

  Args:
    student: stage -> shape, batch included, shallow to deep.
    teacher: likewise.
    vectors: whether features (B, C) are accepted: the teacher's if it has no maps, the student's
      if the teacher has none.

  Raises:
    ConfigError: if a network has no feature map and needs one.
  """
  if not vectors or _maps(teacher):
    return _last(need_maps(student, "student")), _last(need_maps(teacher, "teacher"))
  return _last(_maps(student) or _hidden(student)), _last(_hidden(teacher))


def inner_stages(shapes: Shapes) -> tuple[str, ...]:
  """Return the stages between the stem and the pooled features; all stages if there are none."""
  return tuple(_hidden(shapes))


def need_maps(shapes: Shapes, owner: str) -> Shapes:
  """Return a network's feature maps, without the stem.

  Raises:
    ConfigError: if it has none, naming the features that it has.
  """
  maps = _maps(shapes)
  if not maps:
    has = ", ".join(f"{stage} {shape[1:]}" for stage, shape in shapes.items()) or "nothing"
    raise ConfigError(f"the {owner} has no feature maps (B, H, W, C) to compare: it gives {has}")
  return maps


def _paired_vectors(student: Shapes, teacher: Shapes) -> Pairs:
  if _maps(student) or _maps(teacher):
    return (("pooled", "pooled"),)
  ours, theirs = tuple(_hidden(student)), tuple(_hidden(teacher))
  # Vectors have no spatial size: the deepest are paired.
  count = min(len(ours), len(theirs))
  return tuple(zip(ours[-count:], theirs[-count:], strict=True))


def _maps(shapes: Shapes) -> Shapes:
  return {s: shape for s, shape in shapes.items() if len(shape) == 4 and s != "stem"}


def _hidden(shapes: Shapes) -> Shapes:
  """Return the stages between the stem and the pooled features, or all if there are none."""
  return {s: shape for s, shape in shapes.items() if s not in _ENDS} or shapes


def _last(shapes: Shapes) -> str:
  return list(shapes)[-1]


def _nearest(
  fewer: Mapping[str, tuple[int, ...]], more: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
  """Return the stages of `more` nearest in size to those of `fewer`; the deepest on a tie."""

  def distance(chosen: tuple[str, ...]) -> float:
    sides = zip(fewer.values(), (more[stage] for stage in chosen), strict=True)
    return sum(abs(math.log2(a / b)) for s, t in sides for a, b in zip(s, t, strict=True))

  candidates = list(combinations(more, len(fewer)))
  return min(reversed(candidates), key=lambda chosen: round(distance(chosen), 6))


def before_last(setup: Setup) -> str:
  """Return the student's stage before the last inner stage; the last if there is no other."""
  *earlier, last = inner_stages(setup.student_shapes())
  return earlier[-1] if earlier else last
