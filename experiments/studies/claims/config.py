"""The settings in which `make claims` tests the papers' claims, and the choice of hyperparameters.

`get_config("METHOD@SETTING")` is the plain config of a setting. `RUNS` has the runs of each
setting, `SEARCH` the candidates of each run, which were compared on the validation split (`make
claims-search`, with seeds that the claims do not use), and `CHOSEN` the best candidate.
"""

import itertools

from ml_collections import ConfigDict

from jaxkd.experiment.config import base_config

# Settings: "fashion", with 100 labels per class, and "digits", with ten.
SEEDS = {"fashion": tuple(range(5)), "digits": tuple(range(6))}
# Other seeds, so that nothing is chosen by the runs that are reported.
SEARCH_SEEDS = {"fashion": (100,), "digits": (100, 101)}
QUICK_SEEDS = {"fashion": (0, 1), "digits": (0, 1)}


def get_config(argument: str = "simkd@fashion") -> ConfigDict:
  """The config for "METHOD@SETTING"."""
  method, _, setting = argument.partition("@")
  config = base_config(method)
  config.batch_size = 64
  config.baseline = False
  config.evaluate_every = 1000  # only at the end
  # All seeds share a teacher, and its validation images are in no training set.
  config.data.split_seed = 0
  config.teacher.rescore = False
  for network in (config.teacher, config.student):
    network.learning_rate = 0.1
    network.nesterov = True
    network.schedule = "cosine"
    network.warmup_epochs = 1.0
  {"fashion": _fashion, "digits": _digits}[setting or "fashion"](config)
  return config


def _fashion(config: ConfigDict) -> None:
  config.data.name = "fashion_mnist"
  config.data.per_class = 100
  config.data.teacher_per_class = 3000
  config.data.crop = 2
  config.data.flip = True
  config.teacher.model = "resnet20_w8_s2"
  config.teacher.epochs = 4
  config.student.model = "resnet8_w8_s2"
  config.student.epochs = 30
  own = config.method
  if "first_epochs" in own:
    own.first_epochs = 10
  if "classifier_epochs" in own:
    own.classifier_epochs = 10
  if own.name == "ab":
    # As RepDistiller: labels in the second stage; the authors have soft targets alone.
    own.second_label_weight, own.second_kd_weight = 1.0, 0.0


def _digits(config: ConfigDict) -> None:
  config.data.name = "digits"
  config.data.per_class = 10
  config.data.crop = 1
  config.data.split_seed = -1
  config.student.model = "resnet8_w4"
  config.student.epochs = 200
  if config.method.name == "one":
    config.method.ramp_epochs = 53.0  # of 200, as the authors' 80 of 300


def quick(config: ConfigDict) -> None:
  """Shorten a run to seconds; `make claims-quick` shows that everything runs."""
  fashion = config.data.name == "fashion_mnist"
  config.data.teacher_per_class = 150 if fashion else 0
  config.data.validation = 0.01 if fashion else 0.1
  config.data.test_per_class = 50 if fashion else 0
  # For large and small training sets alike.
  config.student.epochs = max(1, config.student.epochs // 30)
  own = config.method
  for field in ("first_epochs", "classifier_epochs", "paraphraser_epochs"):
    if field in own:
      own[field] = 1
  if own.name == "one":
    own.ramp_epochs = 5.0


# Images per class -> epochs, with about the same number of updates.
SIZES = {20: 120, 100: 30, 500: 6}
TEMPERATURES = (1, 2, 4, 8, 16)
# The layouts of SimKD's projector, poorest first; the last is the authors'.
LAYOUTS = ("1x1", "1x1-1x1", "1x1-dw3x3-1x1", "1x1-3x3-1x1")
FEATURES = ("fitnets", "at", "gradient_at", "nst", "ft", "ab", "fsp", "rkd")
# Three exits before the network's own.
_EXITS = "multi_exit/exits=stem+stage1+stage2"
_LARGE = "alone/student.model=resnet20_w16_s2"
_TINY = "alone/student.model=resnet8_w4_s2"


def _strong(name: str, cutout: int) -> str:
  return f"{name}/data.cutout={cutout}/data.mixup=0.2/student.dropout=0.1"


def _sized(name: str, size: int) -> str:
  return f"{name}/data.per_class={size}/student.epochs={SIZES[size]}"


# Setting -> run -> "METHOD/field=value/..." (`jaxkd.experiment.overrides`).
RUNS = {
  "fashion": {
    "alone": "alone",
    **{f"kd_t{t}": f"kd/temperature={t}.0" for t in TEMPERATURES},
    **{name: name for name in FEATURES},
    "simkd": "simkd",
    "joint": "simkd/classifier=joint",
    "sequential": "simkd/classifier=sequential",
    "simkd+": "simkd/reused_stages=1",
    "simkd++": "simkd/reused_stages=2",
    **{f"simkd_{layout}": f"simkd/projector={layout}" for layout in LAYOUTS[:-1]},
    "simkd_r8": "simkd/reduction=8",
    **{f"exit_wise_{n}": _sized(f"{_EXITS}/weight=0.0/label_weight=1.0", n) for n in SIZES},
    **{f"exits_{n}": _sized(_EXITS, n) for n in SIZES},
    "exits_constant": f"{_EXITS}/adapt_temperature=False",
    "large": _LARGE,
    "large_strong": _strong(_LARGE, 8),
    "tiny": _TINY,
    "tiny_strong": _strong(_TINY, 8),
  },
  "digits": {
    "alone": "alone",
    "large": "alone/student.model=resnet14_w8",
    "large_strong": _strong("alone/student.model=resnet14_w8", 3),
    "alone_strong": _strong("alone", 3),
    "born_again": "born_again",
    "dml": "dml",
    "dml_unequal": "dml/models=student+resnet14_w8",
    "one": "one",
    "byot": "byot",
  },
}


def _each(*choices: tuple[str, ...]) -> tuple[str, ...]:
  """Return every combination of choices, as changes of a run."""
  return tuple("/".join(combination) for combination in itertools.product(*choices))


def _rates(*rates: float, field: str = "learning_rate") -> tuple[str, ...]:
  return tuple(f"{field}={rate}" for rate in rates)


def _weights(*weights: float, field: str = "weight") -> tuple[str, ...]:
  return tuple(f"{field}={weight}" for weight in weights)


_ALONE = _rates(0.1, 0.4, field="student.learning_rate")
_USUAL = _rates(0.1, 0.4)
# Without a label term the gradient is smaller.
_SIMKD = _rates(0.4, 0.8)

# Setting -> run -> candidates. Published weights are for many more images and longer training, so a
# tenth of each is a candidate, too.
SEARCH = {
  "fashion": {
    **dict.fromkeys(("alone", "large", "large_strong", "tiny", "tiny_strong"), _ALONE),
    **dict.fromkeys((f"kd_t{t}" for t in TEMPERATURES), _USUAL),
    "fitnets": _each(_weights(100.0, 10.0), _USUAL),
    "at": _each(_weights(1000.0, 100.0), _USUAL),
    "gradient_at": _USUAL,
    "nst": _each(_weights(50.0, 5.0), _USUAL),
    "ft": _each(_weights(500.0, 50.0), _USUAL),
    "ab": _USUAL,
    "fsp": _each(("two_stage=True", "two_stage=False"), _weights(50.0, 5.0), _USUAL),
    "rkd": _each(_weights(1.0, 0.1), _USUAL),
    **dict.fromkeys(("simkd", "simkd+", "simkd++", "simkd_r8"), _SIMKD),
    **dict.fromkeys((f"simkd_{layout}" for layout in LAYOUTS[:-1]), _SIMKD),
    "joint": _rates(0.1, 0.4, 0.8),
    "sequential": _each(_SIMKD, _rates(0.1, 0.4, field="classifier_learning_rate")),
    **dict.fromkeys((f"exit_wise_{n}" for n in SIZES), _USUAL),
    **dict.fromkeys((f"exits_{n}" for n in SIZES), _USUAL),
    "exits_constant": _each(_weights(1.0, 4.0, field="temperature"), _USUAL),
  },
  "digits": {
    **dict.fromkeys(
      ("alone", "large", "large_strong", "alone_strong"),
      _rates(0.1, 0.3, field="student.learning_rate"),
    ),
    **dict.fromkeys(("born_again", "dml", "dml_unequal", "one", "byot"), _rates(0.1, 0.3)),
  },
}

CHOSEN = {
  "fashion": {
    "alone": "student.learning_rate=0.4",
    "kd_t1": "learning_rate=0.4",
    "kd_t2": "learning_rate=0.1",
    "kd_t4": "learning_rate=0.4",
    "kd_t8": "learning_rate=0.4",
    "kd_t16": "learning_rate=0.4",
    "fitnets": "weight=10.0/learning_rate=0.4",
    "at": "weight=100.0/learning_rate=0.4",
    "gradient_at": "learning_rate=0.4",
    "nst": "weight=5.0/learning_rate=0.4",
    "ft": "weight=50.0/learning_rate=0.4",
    "ab": "learning_rate=0.4",
    "fsp": "two_stage=True/weight=5.0/learning_rate=0.4",
    "rkd": "weight=0.1/learning_rate=0.4",
    "simkd": "learning_rate=0.8",
    "joint": "learning_rate=0.4",
    "sequential": "learning_rate=0.8/classifier_learning_rate=0.4",
    "simkd+": "learning_rate=0.8",
    "simkd++": "learning_rate=0.8",
    "simkd_1x1": "learning_rate=0.8",
    "simkd_1x1-1x1": "learning_rate=0.8",
    "simkd_1x1-dw3x3-1x1": "learning_rate=0.8",
    "simkd_r8": "learning_rate=0.8",
    "exit_wise_20": "learning_rate=0.1",
    "exit_wise_100": "learning_rate=0.1",
    "exit_wise_500": "learning_rate=0.4",
    "exits_20": "learning_rate=0.4",
    "exits_100": "learning_rate=0.4",
    "exits_500": "learning_rate=0.4",
    "exits_constant": "temperature=1.0/learning_rate=0.4",
    "large": "student.learning_rate=0.1",
    "large_strong": "student.learning_rate=0.1",
    "tiny": "student.learning_rate=0.4",
    "tiny_strong": "student.learning_rate=0.4",
  },
  "digits": {
    "alone": "student.learning_rate=0.3",
    "large": "student.learning_rate=0.1",
    "large_strong": "student.learning_rate=0.1",
    "alone_strong": "student.learning_rate=0.3",
    "born_again": "learning_rate=0.3",
    "dml": "learning_rate=0.1",
    "dml_unequal": "learning_rate=0.1",
    "one": "learning_rate=0.3",
    "byot": "learning_rate=0.3",
  },
}
# Runs about contradicted claims (`make claims-why`), on the validation split and with seeds that
# the claims do not use: setting -> run -> changes beside the chosen hyperparameters.
WHY_SEEDS = {"fashion": (100, 101, 102), "digits": tuple(range(100, 106))}
WHY = {
  "fashion": {
    "alone": ("",),
    # The authors' second stage has soft targets alone, and another length.
    "ab": (
      "",
      "second_label_weight=0.0/second_kd_weight=1.0",
      "first_epochs=2",
      "first_epochs=30",
      "learning_rate=0.1",
    ),
    "simkd_1x1": ("",),
    # With a bottleneck of half the teacher's channels, and without.
    "simkd_1x1-1x1": ("", "reduction=1"),
    # An adaptive temperature against constant ones of the same height.
    "exits_100": ("",),
    "exits_constant": ("", "temperature=2.0", "temperature=3.0"),
    # Strong augmentation with twice the training.
    "large": ("", "student.epochs=60"),
    "large_strong": ("", "student.epochs=60"),
  },
  "digits": {
    # Exits on wider and deeper networks.
    "alone": ("", "student.model=resnet8_w8", "student.model=resnet20_w8"),
    "byot": ("", "student.model=resnet8_w8", "student.model=resnet20_w8"),
  },
}
# The temperature that was best, for comparisons of KD with other methods.
KD = "kd_t1"
