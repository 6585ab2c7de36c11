"""ImageNet by the recipe of the published tables: ResNet-34 to ResNet-18, ResNet-50 to MobileNet.

    python experiments/train.py --config configs/imagenet.py:kd --workdir runs/imagenet-kd
    python experiments/train.py --config configs/imagenet.py:simkd@PAIR --workdir ...
    python experiments/train.py --config configs/imagenet.py:kd@PAIR@dot --workdir ...

100 epochs, batch 256, SGD 0.1 with drops at 30, 60 and 90, weight decay 1e-4, on all training
images, random rectangles of 224x224; the last epoch counts. mdistiller has twice the batch at twice
the rate: --config.batch_size=512 --config.student.learning_rate=0.2. The teachers of the tables are
torchvision's, trained: --config.teacher.weights=resnet34.pth; without, they are trained first.

KD is 0.5 labels and 0.5 soft targets at T = 1, DKD has alpha 1, beta 0.5 and T = 1, SimKD trains
for 120 epochs, factor transfer for 1 epoch of the paraphraser and 90 with weight 1000, ReviewKD has
weight 1 or 8, no warm-up and preactivations, all as published. Other methods have their default
weights, as none are published.
KD is 0.5 labels and 0.5 soft targets at T = 1, DKD has alpha 1, beta 0.5 and T = 1, DIST T = 1,
SimKD trains for 120 epochs, factor transfer for 1 epoch of the paraphraser and 90 with weight 1000,
all as published. Other methods have their default weights, as none are published.
KD is 0.5 labels and 0.5 soft targets at T = 1, DKD has alpha 1, beta 0.5 and T = 1, DIST T = 1, NKD
gamma 1.5 and T = 1; SimKD trains for 120 epochs, factor transfer for 1 epoch of the paraphraser and
90 with weight 1000, all as published. Other methods have their default weights, as none are
published.
"""

from ml_collections import ConfigDict

from jaxkd.errors import unknown_name
from jaxkd.experiment.function_matching import PATIENT, match_functions, recipe_or_method

PAIRS = (
  "imagenet_resnet34-imagenet_resnet18",
  "imagenet_resnet50-imagenet_mobilenetv1",
)
# Variants of a recipe, and the method with which each was published.
# "@dot": the distillation-oriented trainer as mdistiller has it: difference of the momenta 0.09,
# batch 512, learning rate 0.2.
VARIANTS = {"dot": "kd"}


def get_config(argument: str = "kd") -> ConfigDict:
  """Return the config for "METHOD" or "METHOD@TEACHER-STUDENT", the pair one of PAIRS.

  Both may be followed by "@VARIANT", one of VARIANTS.
  """
  method, *others = argument.split("@")
  variant = others.pop() if others and others[-1] in VARIANTS else ""
  pair = "@".join(others)
  if pair and pair not in PAIRS:
    raise unknown_name("pair", pair, PAIRS)
  config = recipe_or_method(method)
  config.batch_size = 256
  config.data.name = "imagenet"
  config.data.validation = 0.0
  config.data.resized_crop = 224
  config.data.flip = True
  config.teacher.model, config.student.model = (pair or PAIRS[0]).split("-")
  for network in (config.teacher, config.student):
    network.epochs = 100
    network.learning_rate = 0.1
    network.drops = (30, 60, 90)
    network.weight_decay = 1e-4
  _as_published(config)
  if variant == "dot":
    config.batch_size = 512
    config.student.learning_rate = 0.2
    config.student.optimizer = "dot"
    config.student.optimizer_arguments.delta = 0.09
  if method == PATIENT:
    match_functions(config, epochs=1200)
  return config


def _as_published(config: ConfigDict) -> None:
  method = config.method
  if method.name == "kd":
    method.label_weight, method.weight, method.temperature = 0.5, 0.5, 1.0
  elif method.name == "dkd":
    method.others_weight, method.temperature, method.warmup_epochs = 0.5, 1.0, 1.0
  elif method.name == "sdd":
    # SD-DKD, the form with published figures.
    method.form, method.others_weight, method.temperature = "dkd", 2.0, 1.0
    method.weight, method.label_weight, method.warmup_epochs = 1.0, 1.0, 1.0
  elif method.name == "nkd":
    method.temperature, method.others_weight = 1.0, 1.5
  elif method.name == "uskd":
    method.target_weight, method.others_weight, method.weak_weight = 1.0, 0.1, 0.005
  elif method.name == "dist":
    method.temperature = 1.0
  elif method.name == "ctkd":
    method.curriculum_epochs = 5
  elif method.name == "mlkd":
    method.selection = "share"
    method.temperatures = (1.0, 3.0, 5.0, 2.0, 6.0)
    method.strong_temperatures, method.repeated_temperatures = (1.0, 3.0, 5.0), (2.0, 6.0)
    method.label_weight = method.strong_label_weight = method.weight = 0.5
  elif method.name == "ofa":
    method.exponent = 1.5
  elif method.name == "simkd":
    config.student.epochs = 120
  elif method.name == "catkd" and config.student.model == "imagenet_resnet18":
    method.weight, method.resolution, method.normalize = 0.5, 4, False
  elif method.name == "ft":
    method.paraphraser_epochs, method.weight = 1, 1000.0
    config.student.epochs, config.student.drops = 90, (30, 60)
  elif method.name == "ofd":
    method.weight = 0.1
  elif method.name == "semckd":
    method.weight = 50.0
  elif method.name == "reviewkd":
    method.warmup_epochs, method.student_arrays = 1.0, "preactivations"
    method.weight = 1.0 if config.student.model == "imagenet_resnet18" else 8.0
