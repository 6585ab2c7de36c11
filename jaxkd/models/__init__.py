"""Pure Flax modules that return an Output.

Besides `__call__(images, train)`, a model has `stages` (the names of its features, shallow to
deep), `encode(images, train, to_stage)`, which stops at a stage, and `resume(features, from_stage,
train)`, which continues from one. Each touches only the variables of the layers it runs.
"""

from jaxkd.models.registry import create, names
from jaxkd.models.resnet import CifarResNet
from jaxkd.models.several import ReusedClassifiers, reuse_classifiers
from jaxkd.models.spliced import ReusedClassifier, reuse_classifier
from jaxkd.models.tap import Tapped, tap

__all__ = [
  "CifarResNet",
  "ReusedClassifier",
  "ReusedClassifiers",
  "Tapped",
  "create",
  "names",
  "reuse_classifier",
  "reuse_classifiers",
  "tap",
]
