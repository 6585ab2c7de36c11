"""Pure Flax modules that return an Output.

Besides `__call__(images, train)`, a model has `stages` (the names of its features, shallow to
deep), `encode(images, train, to_stage)`, which stops at a stage, and `resume(features, from_stage,
train)`, which continues from one. Each touches only the variables of the layers it runs.

A model with several exits returns one Output for each, shallowest first. It has `num_exits` and
`run_block(carry, block, train)`, which goes on to the next exit from what the last one left.
"""

from jaxkd.models.branched import Branched, branch_network
from jaxkd.models.ensembles import (
  AtExit,
  Ensemble,
  ExitEnsemble,
  cut_at_exit,
  ensemble_of,
  exit_ensemble,
)
from jaxkd.models.exits import MultiExit, plain_network
from jaxkd.models.fitted_exits import with_exits
from jaxkd.models.gated import GatedBranches, gated_branches
from jaxkd.models.heads import AttentionExit, BottleneckExit, ConvExit, LinearExit, ProjectedExit
from jaxkd.models.msdnet import MSDNet
from jaxkd.models.registry import create, names
from jaxkd.models.resnet import CifarResNet
from jaxkd.models.several import ReusedClassifiers, reuse_classifiers
from jaxkd.models.spliced import ReusedClassifier, reuse_classifier
from jaxkd.models.tap import Tapped, tap

__all__ = [
  "AtExit",
  "AttentionExit",
  "BottleneckExit",
  "Branched",
  "CifarResNet",
  "ConvExit",
  "Ensemble",
  "ExitEnsemble",
  "GatedBranches",
  "LinearExit",
  "MSDNet",
  "MultiExit",
  "ProjectedExit",
  "ReusedClassifier",
  "ReusedClassifiers",
  "Tapped",
  "branch_network",
  "create",
  "cut_at_exit",
  "ensemble_of",
  "exit_ensemble",
  "gated_branches",
  "names",
  "plain_network",
  "reuse_classifier",
  "reuse_classifiers",
  "tap",
  "with_exits",
]
