"""Which stage of a student is compared with which of a teacher, where the config leaves it open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

from jaxkd.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
Pairs = tuple[tuple[str, str], ...]

# A stem has seen next to nothing, "pooled" has no place any more.
_ENDS = ("stem", "pooled")


def paired_stages(student: Shapes, teacher: Shapes, *, vectors: bool = False) -> Pairs:
  """(student's stage, teacher's stage) for the stages between the stem and the pooled features.

  As many of each: in their order. Otherwise by spatial size: those of equal size, of several the
  deepest; or, if no size is in both, every stage of the network with fewer and the stage of the
  other that is nearest in size, order kept.

  Args:
    student: stage -> shape, batch included, shallow to deep.
    teacher: likewise.
    vectors: whether features without a place, (B, C), may be compared. They are where one network
      has no others: the hidden layers of both if neither has, else both "pooled".

  Raises:
    ConfigError: if a network has no stage of the kind.

  >>> student = {f"stage{i}": (2, n, n, 8) for i, n in enumerate((16, 8, 4, 4), start=1)}
  >>> teacher = {f"stage{i}": (2, n, n, 8) for i, n in enumerate((32, 16, 8), start=1)}
  >>> paired_stages(student, teacher)
  (('stage1', 'stage2'), ('stage2', 'stage3'))
  """
  if vectors and not (_maps(student) and _maps(teacher)):
    return _paired_vectors(student, teacher)
  ours, theirs = _need_maps(student, "student"), _need_maps(teacher, "teacher")
  if len(ours) == len(theirs):
    return tuple(zip(ours, theirs, strict=True))
  sizes = [{stage: shape[1:3] for stage, shape in of.items()} for of in (ours, theirs)]
  # Later stages overwrite earlier ones of their size.
  by_size = [{size: stage for stage, size in of.items()} for of in sizes]
  if equal := [
    (stage, by_size[1][size]) for size, stage in by_size[0].items() if size in by_size[1]
  ]:
    return tuple(equal)
  if len(ours) < len(theirs):
    return tuple(zip(ours, _nearest(*sizes), strict=True))
  return tuple(zip(_nearest(sizes[1], sizes[0]), theirs, strict=True))


def last_stages(student: Shapes, teacher: Shapes, *, vectors: bool = False) -> tuple[str, str]:
  """The last stage before the pooled features, of each.

  Args:
    student: stage -> shape, batch included, shallow to deep.
    teacher: likewise.
    vectors: whether features (B, C) will do: for the teacher's where it has no maps, for the
      student's where the teacher has none.

  Raises:
    ConfigError: if a network has no map where one is needed.
  """
  if not vectors or _maps(teacher):
    return _last(_need_maps(student, "student")), _last(_need_maps(teacher, "teacher"))
  return _last(_maps(student) or _hidden(student)), _last(_hidden(teacher))


def inner_stages(shapes: Shapes) -> tuple[str, ...]:
  """The stages between the stem and the pooled features, maps or vectors; all if there are none."""
  return tuple(_hidden(shapes))


def _need_maps(shapes: Shapes, owner: str) -> Shapes:
  """A network's feature maps, stem aside.

  Raises:
    ConfigError: if it has none, with what it has.
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
  # Vectors have no size to go by: the deepest are paired.
  count = min(len(ours), len(theirs))
  return tuple(zip(ours[-count:], theirs[-count:], strict=True))


def _maps(shapes: Shapes) -> Shapes:
  return {s: shape for s, shape in shapes.items() if len(shape) == 4 and s != "stem"}


def _hidden(shapes: Shapes) -> Shapes:
  """Everything between the ends, or what there is."""
  return {s: shape for s, shape in shapes.items() if s not in _ENDS} or shapes


def _last(shapes: Shapes) -> str:
  return list(shapes)[-1]


def _nearest(
  fewer: Mapping[str, tuple[int, ...]], more: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
  """For every stage of `fewer` one of `more`, in order, nearest in size; of equals the deepest."""

  def distance(chosen: tuple[str, ...]) -> float:
    sides = zip(fewer.values(), (more[stage] for stage in chosen), strict=True)
    return sum(abs(math.log2(a / b)) for s, t in sides for a, b in zip(s, t, strict=True))

  candidates = list(combinations(more, len(fewer)))
  return min(reversed(candidates), key=lambda chosen: round(distance(chosen), 6))
