"""Warning for trained networks whose accuracy is below the expected one.

A network whose inputs have another normalisation, size, order of classes or data set than those it
was trained on predicts badly, and a student learns from it without an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxkd.data.examples import counted_labels, has_label
from jaxkd.data.subsets import permutation
from jaxkd.train.reporting import Reporter

# Numbers of images that distinguish a network at chance from a trained one.
_ENOUGH, _AT_MOST = 200, 512
# Seed of their choice; a run's seed does not change it.
_SEED = 0
# Allowed difference between accuracies on test images and on other images of the same kind.
_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Expected:
  """Expected accuracy of a network that comes trained.

  Attributes:
    predictor: the checked predictor of the phase's scheme.
    num_classes: number of classes that it predicts.
    accuracy: in 0..1, on test images, as stated with its weights; None if it is not stated.
    hint: advice for a lower accuracy, the end of the warning.
  """

  predictor: str
  num_classes: int
  accuracy: float | None = None
  hint: str = "check that its images and classes are those that it was trained on"


def sample(examples: Any, validation: Any) -> tuple[Any, str]:
  """Return a few hundred labelled images to check a network with, and their description.

  Args:
    examples: the training images.
    validation: images that are not trained on, or None; preferred if there are enough of them.
  """
  parts = [(validation, "validation"), (examples, "training")]
  labelled = [
    (part, np.flatnonzero(has_label(part).reshape(len(part), -1).any(axis=1)), of)
    for part, of in parts
    if part is not None
  ]
  enough = [found for found in labelled if len(found[1]) >= _ENOUGH]
  part, positions, of = enough[0] if enough else max(labelled, key=lambda found: len(found[1]))
  order = permutation(len(positions), _SEED)[:_AT_MOST]
  return part.take(np.sort(positions[order])), f"{min(len(positions), _AT_MOST)} {of} images"


def warn_if_worse(
  phase: Any,
  evaluate: Callable[[Any], Mapping[str, Mapping[str, float]]],
  validation: Any,
  reporter: Reporter,
) -> None:
  """Report a line if the trained network of a phase predicts worse than expected.

  Args:
    phase: the Phase; nothing is computed if its `expected` is None.
    evaluate: examples -> predictor -> its scores.
    validation: as for `sample`.
    reporter: receives the line.
  """
  if phase.expected is None:
    return
  examples, of = sample(phase.examples, validation)
  accuracy = evaluate(examples)[phase.expected.predictor]["accuracy"]
  if getattr(examples, "multi_label", False):
    positive = np.mean(examples.labels[has_label(examples).any(axis=1)] > 0.5, axis=0)
    chance = float(np.mean(np.maximum(positive, 1 - positive)))
    if accuracy <= chance:
      reporter.message(
        f"warning: {phase.name}: {accuracy:.1%} of the labels of {of} are right, no better than "
        f"the more frequent answer for every class ({chance:.1%}): {phase.expected.hint}"
      )
    return
  if why := reason_to_warn(phase.expected, accuracy, counted_labels(examples)):
    reporter.message(
      f"warning: {phase.name}: its accuracy on {of} is {accuracy:.1%}, {why}: {phase.expected.hint}"
    )


def reason_to_warn(expected: Expected, accuracy: float, labels: np.ndarray) -> str:
  """Return the reason why an accuracy is too low to learn from, or "" if it is not.

  Args:
    expected: the network's expected accuracy.
    accuracy: its accuracy on examples of these labels.
    labels: those that count, (N,).

  >>> reason_to_warn(Expected("teacher", 2, 0.9), 0.55, np.arange(200) % 2)
  'but its weights come with a test accuracy of 90.0%'
  >>> reason_to_warn(Expected("teacher", 2), 0.55, np.arange(200) % 2)
  'no better than chance (50.0%)'
  """
  _, counts = np.unique(labels, return_counts=True)
  # A network that always predicts one class has the share of that class.
  chance, stated = max(1 / expected.num_classes, counts.max() / len(labels)), expected.accuracy
  if stated is not None and accuracy + 3 * _error(stated, len(labels)) + _TOLERANCE < stated:
    return f"but its weights come with a test accuracy of {stated:.1%}"
  if accuracy <= chance + 2 * _error(chance, len(labels)):
    return f"no better than chance ({chance:.1%})"
  return ""


def _error(share: float, count: int) -> float:
  """The standard error of an accuracy measured on `count` images."""
  return math.sqrt(share * (1 - share) / count)
