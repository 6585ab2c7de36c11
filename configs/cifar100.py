"""CIFAR-100 by RepDistiller's recipe, the setting of the published tables.

    python experiments/train.py --config configs/cifar100.py:simkd --workdir runs/cifar100-simkd
    python experiments/train.py --config configs/cifar100.py:kd@vgg13-mobilenetv2 --workdir ...
    python experiments/train.py --config configs/cifar100.py:kd@vgg13-vgg8@dot --workdir ...

240 epochs, batch 64, SGD 0.05 with drops at 150, 180 and 210, on all 50,000 training images; the
last epoch counts. Set --config.data.validation=0.1 to choose anything.

The tables' hyperparameters differ between pairs in two places: MobileNet and ShuffleNet students
learn at 0.01, and factor transfer's paraphrasers at 0.01 for all students but VGGs.

Methods that the tables do not have are trained as they were published: mutual learning, ONE,
OKDDip, be-your-own-teacher, multi-exit distillation, PS-KD and CS-KD each have a schedule of their
own, below. Born-again networks, KDCL and attention transfer from gradients have no published recipe
for CIFAR-100, and follow the tables'.
"""

from ml_collections import ConfigDict

from jaxkd import methods
from jaxkd.errors import unknown_name
from jaxkd.experiment.function_matching import PATIENT, match_functions, recipe_or_method

# Teacher-student pairs of the published tables; the first is the default.
MAIN_PAIRS = (
  "resnet32x4-resnet8x4",
  "wrn_40_2-wrn_16_2",
  "resnet56-resnet20",
  "resnet110-resnet32",
  "vgg13-vgg8",
  "vgg13-mobilenetv2",
  "resnet32x4-shufflenetv1",
  "resnet32x4-shufflenetv2",
)
PAIRS = (
  *MAIN_PAIRS,
  "wrn_40_2-wrn_40_1",
  "resnet110-resnet20",
  "cifar_resnet50-mobilenetv2",
  "cifar_resnet50-vgg8",
  "wrn_40_2-shufflenetv1",
  # The pairs of SimKD's tables.
  "resnet32x4-vgg8",
  "resnet32x4-shufflenetv2_x1.5",
)
# Variants of a recipe, and the method with which each was published.
# "@dot": the distillation-oriented trainer with the published difference of the momenta, 0.075.
VARIANTS = {"dot": "kd"}

# mdistiller's weight of the classes besides the target; 8 for all other pairs.
_DKD_BETA = {
  "resnet56-resnet20": 2.0,
  "resnet110-resnet32": 2.0,
  "wrn_40_2-wrn_16_2": 6.0,
  "wrn_40_2-wrn_40_1": 6.0,
  "vgg13-vgg8": 6.0,
  "vgg13-mobilenetv2": 6.0,
}

# Temperature, weight and label weight of the virtual teacher, of the authors' code: alpha 0.95 and
# a mean over 100 classes.
_TFKD = {
  "mobilenetv2": (40.0, 0.0095, 0.05),
  "shufflenetv2": (10.0, 0.0095, 0.05),
}


def get_config(argument: str = "simkd") -> ConfigDict:
  """Return the config for "METHOD" or "METHOD@TEACHER-STUDENT", the pair one of PAIRS.

  Both may be followed by "@VARIANT", one of VARIANTS.
  "multi_exit" alone trains the MSDNet of its authors; with a pair, the pair's student with exits.
  """
  method, pair, variant = _parsed(argument)
  config = recipe_or_method(method)
  config.data.name = "cifar100"
  config.data.validation = 0.0
  config.data.crop = 4
  config.data.flip = True
  config.teacher.model, config.student.model = (pair or PAIRS[0]).split("-")
  _as_in_the_tables(config)
  if method in _OWN_RECIPES:
    _OWN_RECIPES[method](config)
  if method == "multi_exit" and not pair:
    _authors_msdnet(config)
  if config.student.model.startswith(("mobilenet", "shufflenet")):
    config.student.learning_rate = 0.01
  if variant == "dot":
    config.student.optimizer = "dot"
    config.student.optimizer_arguments.delta = 0.075
    config.student.nesterov = False
  if method == PATIENT:
    match_functions(config, epochs=1200)
  return config


def _parsed(argument: str) -> tuple[str, str, str]:
  """Return the method, the pair and the variant of "METHOD[@PAIR][@VARIANT]"; "" for none."""
  method, *others = argument.split("@")
  variant = others.pop() if others and others[-1] in VARIANTS else ""
  pair = "@".join(others)
  if pair and pair not in PAIRS:
    raise unknown_name("pair", pair, PAIRS)
  return method, pair, variant


def _as_in_the_tables(config: ConfigDict) -> None:
  """Set RepDistiller's variants of methods whose defaults here are their authors'."""
  factors = methods.section(config, "ft")
  if factors is not None:
    factors.weight = 200.0
    factors.normalization = "repdistiller"
    factors.translator_batch_norm = True
    factors.reconstruction = "mse"
    factors.paraphraser_epochs = 30
    if config.student.model.startswith(("resnet", "wrn")):
      factors.paraphraser_learning_rate = 0.01
  decoupled = methods.section(config, "dkd")
  if decoupled is not None:
    pair = f"{config.teacher.model}-{config.student.model}"
    decoupled.others_weight = _DKD_BETA.get(pair, 8.0)
  review = methods.section(config, "reviewkd")
  if review is not None:
    pair = f"{config.teacher.model}-{config.student.model}"
    review.weight = _REVIEW_WEIGHTS.get(pair, review.weight)
  correlations = methods.section(config, "cc")
  if correlations is not None:
    correlations.form, correlations.weight = "embedding", 0.02
  scales = methods.section(config, "sdd")
  if scales is not None and config.teacher.model[:3] != config.student.model[:3]:
    scales.scales = (1, 2, 4)
  teacher_free = methods.section(config, "tfkd")
  if teacher_free is not None and config.student.model in _TFKD:
    temperature, weight, labels = _TFKD[config.student.model]
    teacher_free.temperature, teacher_free.weight = temperature, weight
    teacher_free.label_weight = labels
  boundaries = methods.section(config, "ab")
  if boundaries is not None and boundaries is config.method:
    # Labels alone after the first stage.
    boundaries.second_label_weight = 1.0
    boundaries.second_kd_weight = 0.0

  attention = methods.section(config, "catkd")
  if attention is not None:
    pair = f"{config.teacher.model}-{config.student.model}"
    weight, resolution, normalize = _CLASS_ATTENTION.get(pair, (400.0, 2, True))
    attention.weight, attention.resolution, attention.normalize = weight, resolution, normalize


# CAT-KD's weight, resolution and normalisation of each pair.
_CLASS_ATTENTION = {
  "resnet32x4-resnet8x4": (15.0, 2, False),
  "resnet110-resnet32": (1.8, 2, False),
  "resnet56-resnet20": (0.7, 2, False),
  "vgg13-vgg8": (4.5, 2, False),
  "wrn_40_2-wrn_16_2": (12.0, 2, False),
  "wrn_40_2-wrn_40_1": (1.5, 2, False),
  "vgg13-mobilenetv2": (15.0, 2, True),
  "cifar_resnet50-mobilenetv2": (40.0, 2, True),
  "resnet32x4-shufflenetv1": (600.0, 4, True),
  "resnet32x4-shufflenetv2": (600.0, 4, True),
  "wrn_40_2-shufflenetv1": (80.0, 4, True),
}


# Weights of ReviewKD in the authors' script; that of the other pairs is 5, the default.
_REVIEW_WEIGHTS = {
  "resnet56-resnet20": 0.6,
  "resnet110-resnet32": 1.0,
  "resnet32x4-shufflenetv2": 8.0,
}


def _schedule(config: ConfigDict, epochs: int, drops: tuple[int, ...]) -> None:
  config.student.epochs, config.student.drops = epochs, drops
  config.student.learning_rate = 0.1


def _mutual(config: ConfigDict) -> None:
  """Set the schedule of chxy95's code; the authors' own is for person re-identification."""
  _schedule(config, 200, (60, 120, 180))
  config.student.nesterov = True


def _native_ensemble(config: ConfigDict) -> None:
  """Set the authors' schedule."""
  _schedule(config, 300, (151, 225))
  config.student.weight_decay = 1e-4
  config.batch_size = 128


def _own_teacher(config: ConfigDict) -> None:
  """Set the schedule of the earlier published code (luanyunteng's), which has our objective."""
  _schedule(config, 200, (75, 130, 180))
  config.batch_size = 128
  # These widen their last map before they pool it; the exits are as wide as the map.
  widened = config.student.model.startswith(("mobilenetv2", "shufflenetv2"))
  config.method.feature_stage = "hint" if widened else "pooled"


def _multi_exit(config: ConfigDict) -> None:
  """Set the authors' schedule, except crops, which pad with black, not with the mean colour."""
  _schedule(config, 300, (150, 225))
  config.student.nesterov = True
  config.student.weight_decay = 1e-4


def _authors_msdnet(config: ConfigDict) -> None:
  """Set the network and data of multi-exit distillation's authors: 100 images per class."""
  config.student.model = "msdnet_11"
  config.method.scale = 10 / 11
  config.data.per_class = 100
  config.data.validation = 0.1
  config.keep = "best"


def _past_predictions(config: ConfigDict) -> None:
  """Set the authors' schedule."""
  _schedule(config, 300, (150, 225))
  config.student.nesterov = True
  config.batch_size = 128


def _augmented(config: ConfigDict) -> None:
  """Set NetAug's schedule and regularisation, which its authors have for ImageNet."""
  config.student.epochs, config.student.schedule = 155, "cosine"
  config.student.warmup_epochs = 5.0
  config.student.nesterov = True
  config.student.weight_decay = 4e-5
  config.student.label_smoothing = 0.1


def _pairs_of_a_class(config: ConfigDict) -> None:
  """Set the authors' schedule."""
  _schedule(config, 200, (100, 150))
  config.student.weight_decay = 1e-4
  config.batch_size = 128


def _diverse_peers(config: ConfigDict) -> None:
  """Set the authors' schedule."""
  _schedule(config, 300, (150, 225))
  config.student.nesterov = True
  config.batch_size = 128


def _multi_level(config: ConfigDict) -> None:
  """Set the form and the learning rate of the authors' code."""
  method = config.method
  method.selection = "share"
  method.strong_temperatures, method.repeated_temperatures = (4.0, 3.0, 5.0), (2.0, 6.0)
  config.student.learning_rate = 0.025


_OWN_RECIPES = {
  "netaug": _augmented,
  "mlkd": _multi_level,
  "dml": _mutual,
  "one": _native_ensemble,
  "byot": _own_teacher,
  "multi_exit": _multi_exit,
  "pskd": _past_predictions,
  "cskd": _pairs_of_a_class,
  "okddip": _diverse_peers,
}
