"""CIFAR-100 by RepDistiller's recipe, the setting of the published tables.

    python experiments/train.py --config configs/cifar100.py:simkd --workdir runs/cifar100-simkd
    python experiments/train.py --config configs/cifar100.py:kd@vgg13-mobilenetv2 --workdir ...

240 epochs, batch 64, SGD 0.05 with drops at 150, 180 and 210, on all 50,000 training images; the
last epoch counts. Set --config.data.validation=0.1 to choose anything.
"""

from ml_collections import ConfigDict

from jaxkd import recipes
from jaxkd.errors import unknown_name

# Teacher-student pairs of the published tables; the first is what a method alone stands for.
PAIRS = (
  "resnet32x4-resnet8x4",
  "wrn_40_2-wrn_16_2",
  "wrn_40_2-wrn_40_1",
  "resnet56-resnet20",
  "resnet110-resnet20",
  "resnet110-resnet32",
  "vgg13-vgg8",
  "vgg13-mobilenetv2",
  "cifar_resnet50-mobilenetv2",
  "cifar_resnet50-vgg8",
  "resnet32x4-shufflenetv1",
  "resnet32x4-shufflenetv2",
  "wrn_40_2-shufflenetv1",
  # SimKD's.
  "resnet32x4-vgg8",
  "resnet32x4-shufflenetv2_x1.5",
)


def get_config(argument: str = "simkd") -> ConfigDict:
  """The config for "METHOD" or "METHOD@TEACHER-STUDENT", the pair one of PAIRS."""
  method, _, pair = argument.partition("@")
  if pair and pair not in PAIRS:
    raise unknown_name("pair", pair, PAIRS)
  config = recipes.base_config(method)
  config.data.name = "cifar100"
  config.data.validation = 0.0
  config.data.crop = 4
  config.data.flip = True
  config.teacher.model, config.student.model = (pair or PAIRS[0]).split("-")
  if config.student.model.startswith(("mobilenet", "shufflenet")):
    config.student.learning_rate = 0.01
  _as_in_the_tables(config)
  return config


def _as_in_the_tables(config: ConfigDict) -> None:
  """RepDistiller's variants of methods whose defaults here are their authors'."""
  factors = recipes.section(config, "ft")
  if factors is not None:
    factors.weight = 200.0
    factors.normalization = "repdistiller"
    factors.translator_batch_norm = True
    factors.reconstruction = "mse"
    factors.paraphraser_epochs = 30
    if config.student.model.startswith(("resnet", "wrn")):
      factors.paraphraser_learning_rate = 0.01
  boundaries = recipes.section(config, "ab")
  if boundaries is not None and boundaries is config.method:
    # After the first stage, labels alone.
    boundaries.second_label_weight = 1.0
    boundaries.second_kd_weight = 0.0
