"""Pure Flax modules that return an Output.

Besides `__call__(images, train)`, a model has `stages` (the names of its features, shallow to
deep), `encode(images, train, to_stage)`, which stops at a stage, and `resume(features, from_stage,
train)`, which continues from one. Each touches only the variables of the layers it runs.

A model with several exits returns one Output for each, shallowest first. It has `num_exits` and
`run_block(carry, block, train)`, which goes on to the next exit from what the last one left.

`from_torch` makes a model's variables of a PyTorch state dict, without PyTorch.
"""

from jaxkd.models.branched import Branched, branch_network
from jaxkd.models.deep_resnet import ResNet
from jaxkd.models.ensembles import (
  AtExit,
  Ensemble,
  ExitEnsemble,
  cut_at_exit,
  ensemble_of,
  exit_ensemble,
  exits_inside,
)
from jaxkd.models.exits import MultiExit, plain_network
from jaxkd.models.fitted_exits import with_exits
from jaxkd.models.from_torch import classes_in, from_torch
from jaxkd.models.gated import GatedBranches, gated_branches
from jaxkd.models.heads import AttentionExit, BottleneckExit, ConvExit, LinearExit, ProjectedExit
from jaxkd.models.mlp import MLP
from jaxkd.models.mobilenetv1 import MobileNetV1
from jaxkd.models.mobilenetv2 import MobileNetV2
from jaxkd.models.msdnet import MSDNet
from jaxkd.models.registry import create, names, published_preprocessing
from jaxkd.models.resnet import CifarResNet
from jaxkd.models.several import ReusedClassifiers, reuse_classifiers
from jaxkd.models.shufflenetv1 import ShuffleNetV1
from jaxkd.models.shufflenetv2 import ShuffleNetV2
from jaxkd.models.spliced import ReusedClassifier, reuse_classifier
from jaxkd.models.summary import StageSummary, Summary, summary
from jaxkd.models.tap import Tapped, tap
from jaxkd.models.vgg import VGG
from jaxkd.models.vit import VisionTransformer
from jaxkd.models.wide_resnet import WideResNet

__all__ = [
  "MLP",
  "VGG",
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
  "MobileNetV1",
  "MobileNetV2",
  "MultiExit",
  "ProjectedExit",
  "ResNet",
  "ReusedClassifier",
  "ReusedClassifiers",
  "ShuffleNetV1",
  "ShuffleNetV2",
  "StageSummary",
  "Summary",
  "Tapped",
  "VisionTransformer",
  "WideResNet",
  "branch_network",
  "classes_in",
  "create",
  "cut_at_exit",
  "ensemble_of",
  "exit_ensemble",
  "exits_inside",
  "from_torch",
  "gated_branches",
  "names",
  "plain_network",
  "published_preprocessing",
  "reuse_classifier",
  "reuse_classifiers",
  "summary",
  "tap",
  "with_exits",
]
