"""The accuracy expected of a trained network, and a warning where it is not reached.

Weights that are given inputs of another normalisation, size, order of classes or data set than
those they were trained on predict badly, and a student learns that without an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxkd.data.examples import UNLABELLED
from jaxkd.data.subsets import permutation
from jaxkd.train.reporting import Reporter

# So many images tell a network at chance from one that works.
_ENOUGH, _AT_MOST = 200, 512
# The seed of their choice, which no run's own seed changes.
_SEED = 0
# What an accuracy on other images of the same kind may be below that on test images.
_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Expected:
  """What is known of a network that comes trained.

  Attributes:
    predictor: of the phase's scheme, what is checked.
    num_classes: that it predicts.
    accuracy: in 0..1, on test images, as stated with its weights; None if nothing is stated.
    hint: what to look at where it is not reached.
  """

  predictor: str
  num_classes: int
  accuracy: float | None = None
  hint: str = "check that its images and classes are those that it was trained on"


def sample(examples: Any, validation: Any) -> tuple[Any, str]:
  """A few hundred labelled images to check a network by, and what they are.

  Args:
    examples: the training images.
    validation: images that nothing is trained on, or None; taken if there are enough of them.
  """
  parts = [(validation, "validation"), (examples, "training")]
  labelled = [
    (part, np.flatnonzero(np.asarray(part.labels) != UNLABELLED), of)
    for part, of in parts
    if part is not None
  ]
  enough = [found for found in labelled if len(found[1]) >= _ENOUGH]
  part, places, of = enough[0] if enough else max(labelled, key=lambda found: len(found[1]))
  order = permutation(len(places), _SEED)[:_AT_MOST]
  return part.take(np.sort(places[order])), f"{min(len(places), _AT_MOST)} {of} images"


def warn_if_worse(
  phase: Any,
  evaluate: Callable[[Any], Mapping[str, Mapping[str, float]]],
  validation: Any,
  reporter: Reporter,
) -> None:
  """Reports a line if the trained network of a phase predicts worse than expected.

  Args:
    phase: the Phase; nothing is computed without its `expected`.
    evaluate: examples -> predictor -> its scores.
    validation: as for `sample`.
    reporter: receives the line.
  """
  if phase.expected is None:
    return
  examples, of = sample(phase.examples, validation)
  accuracy = evaluate(examples)[phase.expected.predictor]["accuracy"]
  if why := disappointment(phase.expected, accuracy, examples.labels):
    reporter.told(
      f"warning: {phase.name}: its accuracy on {of} is {accuracy:.1%}, {why}: {phase.expected.hint}"
    )


def disappointment(expected: Expected, accuracy: float, labels: np.ndarray) -> str:
  """Why an accuracy is not that of a network to learn from; "" if nothing speaks against it.

  Args:
    expected: what is known of the network.
    accuracy: on examples of these labels.
    labels: (N,).

  >>> disappointment(Expected("teacher", 2, 0.9), 0.55, np.arange(200) % 2)
  'but its weights come with a test accuracy of 90.0%'
  >>> disappointment(Expected("teacher", 2), 0.55, np.arange(200) % 2)
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
  """The standard error of an accuracy that was found on so many images."""
  return math.sqrt(share * (1 - share) / count)
