"""Models: pure Flax modules that return an Output.

A model has `__call__(images, train)`, `stages` (the names of its features, shallow to deep),
`encode(images, train, to_stage)`, which stops at a stage, and `resume(features, from_stage,
train)`, which continues after one. Each uses only the variables of the layers that it runs.

A model with several exits returns one Output per exit, shallowest first. It has `num_exits` and
`run_block(carry, block, train)`, which continues from one exit to the next.

Subpackages: `zoo` (architectures), `compose` (networks made of networks), `torch` (weights of
PyTorch).
"""

from jaxkd.models import imported
from jaxkd.models.compose.branches import Branched, GatedBranches, branch_network, gated_branches
from jaxkd.models.compose.ensemble import (
  AtExit,
  Ensemble,
  ExitEnsemble,
  cut_at_exit,
  ensemble_of,
  exit_ensemble,
  exits_inside,
)
from jaxkd.models.compose.exits import MultiExit, plain_network, with_exits
from jaxkd.models.compose.heads import (
  AttentionExit,
  BottleneckExit,
  ConvExit,
  LinearExit,
  ProjectedExit,
)
from jaxkd.models.compose.quantized import PRECISIONS, Quantized, quantized
from jaxkd.models.compose.reused_classifier import (
  ReusedClassifier,
  ReusedClassifiers,
  reuse_classifier,
  reuse_classifiers,
)
from jaxkd.models.functions import FromFunction, from_function
from jaxkd.models.nnx_models import FromNNX, from_nnx, to_nnx
from jaxkd.models.registry import check_name, create, names, published_preprocessing, register
from jaxkd.models.summary import StageSummary, Summary, summary
from jaxkd.models.tap import Tapped, tap
from jaxkd.models.torch.load import classes_in, from_torch
from jaxkd.models.zoo.class_token_vit import ClassTokenTransformer
from jaxkd.models.zoo.convnext import ConvNeXt
from jaxkd.models.zoo.densenet import DenseNet
from jaxkd.models.zoo.efficientnet import EfficientNet
from jaxkd.models.zoo.imagenet_mobilenet_v2 import ImageNetMobileNetV2
from jaxkd.models.zoo.imagenet_vgg import ImageNetVGG
from jaxkd.models.zoo.mlp import MLP
from jaxkd.models.zoo.mobilenet import MobileNetV1, MobileNetV2
from jaxkd.models.zoo.mobilenet_v3 import MobileNetV3, TimmMobileNetV3
from jaxkd.models.zoo.msdnet import MSDNet
from jaxkd.models.zoo.resnet import CifarResNet, ResNet
from jaxkd.models.zoo.resnet_d import ResNetD
from jaxkd.models.zoo.shufflenet import ShuffleNetV1, ShuffleNetV2
from jaxkd.models.zoo.vgg import VGG
from jaxkd.models.zoo.vit import VisionTransformer
from jaxkd.models.zoo.wide_resnet import WideResNet

__all__ = [
  "MLP",
  "PRECISIONS",
  "VGG",
  "AtExit",
  "AttentionExit",
  "BottleneckExit",
  "Branched",
  "CifarResNet",
  "ClassTokenTransformer",
  "ConvExit",
  "ConvNeXt",
  "DenseNet",
  "EfficientNet",
  "Ensemble",
  "ExitEnsemble",
  "FromFunction",
  "FromNNX",
  "GatedBranches",
  "ImageNetMobileNetV2",
  "ImageNetVGG",
  "LinearExit",
  "MSDNet",
  "MobileNetV1",
  "MobileNetV2",
  "MobileNetV3",
  "MultiExit",
  "ProjectedExit",
  "Quantized",
  "ResNet",
  "ResNetD",
  "ReusedClassifier",
  "ReusedClassifiers",
  "ShuffleNetV1",
  "ShuffleNetV2",
  "StageSummary",
  "Summary",
  "Tapped",
  "TimmMobileNetV3",
  "VisionTransformer",
  "WideResNet",
  "branch_network",
  "check_name",
  "classes_in",
  "create",
  "cut_at_exit",
  "ensemble_of",
  "exit_ensemble",
  "exits_inside",
  "from_function",
  "from_nnx",
  "from_torch",
  "gated_branches",
  "imported",
  "names",
  "plain_network",
  "published_preprocessing",
  "quantized",
  "register",
  "reuse_classifier",
  "reuse_classifiers",
  "summary",
  "tap",
  "to_nnx",
  "with_exits",
]
