"""Taking learners' parameters out of a participants tree, and putting them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd.types import Participants


def select(participants: Participants, learners: Iterable[str]) -> Participants:
  """The parameters that receive gradients, without the "params" level of Flax's variables.

  Args:
    participants: name -> Flax variables.
    learners: names of participants, or paths into their parameters ("student/head").

  Returns:
    {"student": params, "connector": {"conv1": params}, ...}

  Raises:
    ValueError: naming the learner and what there is, if a path leads nowhere.

  >>> tree = {"student": {"params": {"stem": 1, "head": 2}, "batch_stats": {"stem": 3}}}
  >>> select(tree, ["student"])
  {'student': {'stem': 1, 'head': 2}}
  >>> select(tree, ["student/head"])
  {'student': {'head': 2}}
  """
  learning: dict[str, Any] = {}
  for learner in learners:
    name, *path = learner.split("/")
    if name not in participants:
      raise ValueError(f"learner {learner!r}: no participant {name!r} among {sorted(participants)}")
    source, target, key = participants[name]["params"], learning, name
    for step in path:
      if step not in source:
        raise ValueError(f"learner {learner!r}: no {step!r} among {sorted(source)}")
      target = target.setdefault(key, {})
      source, key = source[step], step
    target[key] = source
  return learning


def frozen(participants: Iterable[str], learners: Iterable[str]) -> tuple[str, ...]:
  """The participants of which no part learns.

  >>> frozen(["teacher", "student", "projector"], ["student/head", "projector"])
  ('teacher',)
  """
  learning = {learner.partition("/")[0] for learner in learners}
  return tuple(name for name in participants if name not in learning)


def merge(participants: Participants, learning: Participants) -> Participants:
  """`participants` with the parameters of `learning` (see `select`) in place of its own.

  >>> tree = {"student": {"params": {"stem": 1, "head": 2}, "batch_stats": {"stem": 3}}}
  >>> merge(tree, {"student": {"head": 9}})
  {'student': {'params': {'stem': 1, 'head': 9}, 'batch_stats': {'stem': 3}}}
  """
  return update(participants, {name: {"params": params} for name, params in learning.items()})


def update(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """`tree` with the leaves of `changes` laid over it; nested dicts are merged, not replaced.

  >>> update({"student": {"params": 1, "batch_stats": 2}}, {"student": {"batch_stats": 5}})
  {'student': {'params': 1, 'batch_stats': 5}}
  """
  merged = dict(tree)
  for key, change in changes.items():
    both = isinstance(change, Mapping) and isinstance(tree.get(key), Mapping)
    merged[key] = update(tree[key], change) if both else change
  return merged
